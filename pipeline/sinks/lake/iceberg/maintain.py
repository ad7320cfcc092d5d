"""The upkeep of Iceberg tables, beside running workers: few large files of many small ones, old snapshots and orphans removed.

No row changes and no property: a worker that continues in the middle of it finds what it has left. Each step is a commit that
fails when a worker was faster; then it is tried again, on what the worker has made, or left for the next run.

Files are removed when nothing refers to them and they are older than `Ages.orphans`: a worker that is about to commit files
has written them just now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.io import PY_IO_IMPL
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot

from pipeline.errors import TransientError
from pipeline.sinks.lake.iceberg.columns import VERSION
from pipeline.sinks.lake.iceberg.commit import PARTITION, delete, once, read_file, replace, write_files
from pipeline.sinks.lake.iceberg.errors import OVERTAKEN, explained_error
from pipeline.sinks.lake.iceberg.io import COUNTED, counted, files_below, location_path
from pipeline.sinks.lake.iceberg.items import COMMIT_ATTEMPTS, TOMBSTONE, TOMBSTONES, deleted_of

log = logging.getLogger(__name__)
SMALL = 16 << 20
"""Bytes of a data file that is small."""
FEWEST = 5
"""Small files of a partition that are worth a rewrite."""
TOMBSTONES_A_FILE = 200_000
"""Tombstones of about the same age, so that a reader of the young ones leaves the others alone."""
OURS = "headwater."
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ages:
    """How old what is removed must be."""

    snapshots: timedelta = timedelta(days=5)
    keep: int = 10
    """The newest snapshots, which stay however old they are."""
    orphans: timedelta = timedelta(days=3)
    """Far more than a commit takes: a worker has written files that nothing refers to yet."""
    tombstones: timedelta = timedelta(days=30)
    """Since a deletion was recorded. After that an older change of the item may bring it back."""


@dataclass(slots=True)
class Upkeep:
    """What was done to a table, or would be."""

    table: str
    bytes_before: int = 0
    """Of all files in its location."""
    bytes_after: int = 0
    files_before: int = 0
    files_after: int = 0
    compacted: int = 0
    """Data files that became fewer, larger ones."""
    snapshots: int = 0
    orphans: int = 0
    tombstones: int = 0
    left: list[str] = field(default_factory=list)
    """What the next run does, and why."""


@dataclass(frozen=True, slots=True)
class UpkeepReport:
    """What was done."""

    tables: Sequence[Upkeep]
    requests: Mapping[str, int] | None
    """Files read, written and deleted; None where the catalog's settings name another file access."""


def maintain_tables(
    catalog: Mapping[str, str],
    namespace: str,
    *,
    ages: Ages = Ages(),
    small: int = SMALL,
    fewest: int = FEWEST,
    dry_run: bool = False,
    progress: Step = lambda _step: None,
    now: datetime | None = None,
) -> UpkeepReport:
    """Keep the tables of a namespace that are ours; `dry_run`: only say what there is to do.

    `small`: bytes below which a data file is compacted, where a partition has `fewest` of them. `now`: from which ages count.
    """
    token, own = uuid4().hex, PY_IO_IMPL in catalog
    counting = {} if own else {PY_IO_IMPL: "pipeline.sinks.lake.iceberg.io.CountingFileIO", COUNTED: token}
    with explained_error(f"the catalog of {namespace}"):
        found = load_catalog("headwater", **{**catalog, **counting})
        names = list(iceberg_tables(found, namespace))
    tables = []
    for name in names:
        keeper = Keeper(found, name, ages, small, fewest, dry_run, now or datetime.now(UTC), progress)
        try:
            with explained_error(f"the Iceberg table {'.'.join(name)}"):
                if keeper.is_ours():
                    tables.append(keeper.upkeep)
                    keeper.keep()
        except TransientError as error:
            log.warning("%s", error)
            keeper.upkeep.left.append(str(error))
    return UpkeepReport(tables, None if own else counted(token))


def iceberg_tables(catalog: Catalog, namespace: str) -> Iterator[tuple[str, str]]:
    """Yield the tables of a namespace, and those of the deleted items beside them."""
    for one in (namespace, deleted_of(namespace)):
        if catalog.namespace_exists(one):
            yield from ((one, identifier[-1]) for identifier in sorted(catalog.list_tables(one)))


@dataclass(slots=True)
class Keeper:
    """The upkeep of one table."""

    catalog: Catalog
    name: tuple[str, str]
    ages: Ages
    small: int
    fewest: int
    dry_run: bool
    now: datetime
    progress: Step
    upkeep: Upkeep = field(init=False)

    def __post_init__(self) -> None:
        self.upkeep = Upkeep(".".join(self.name))

    def is_ours(self) -> bool:
        """Say whether the table has a property of ours."""
        return any(name.startswith(OURS) for name in self._load().properties)

    def keep(self) -> None:
        """Do all of it."""
        table = self._load()
        files = [listed.size for _, listed in files_below(table)]
        self.upkeep.files_before, self.upkeep.bytes_before = len(files), sum(files)
        if TOMBSTONES in table.properties:
            self._forget(table)
        else:
            self._compact(table)
        expired = self._expire()
        self._remove_orphans(expired)
        if not self.dry_run:
            files = [listed.size for _, listed in files_below(self._load())]
        self.upkeep.files_after, self.upkeep.bytes_after = len(files), sum(files)

    def _load(self) -> Table:
        return self.catalog.load_table(self.name)

    def _tell(self, what: str) -> None:
        self.progress(f"{self.upkeep.table}: {what}")

    # -- data files ---------------------------------------------------------------------------------------------------

    def _compact(self, table: Table) -> None:
        """Make few large files of many small ones, partition by partition."""
        for tasks in by_partition(table):
            some = [task for task in tasks if task.file.file_size_in_bytes < self.small]
            if len(some) < self.fewest:
                continue
            self._tell(f"{len(some)} small files of a partition")
            if self.dry_run:
                self.upkeep.compacted += len(some)
                continue
            self.upkeep.compacted += self._replace(table, some, [_pieces(table, some)])

    def _forget(self, table: Table) -> None:
        """Remove tombstones that are old enough, and all but the newest of an item."""
        oldest = self.now - self.ages.tombstones
        for tasks in by_partition(table):
            there = pa.concat_tables(_pieces(table, tasks), promote_options="permissive")
            kept = newest_tombstones(there, oldest)
            ideal = -(-kept.num_rows // TOMBSTONES_A_FILE)
            is_old = bool(pc.any(pc.less(there.column("_written_at"), pa.scalar(oldest))).as_py())
            if not is_old and len(tasks) < ideal + self.fewest:
                continue
            self._tell(f"{there.num_rows - kept.num_rows} tombstones of a partition to forget")
            if self.dry_run or self._replace(table, tasks, _slices(kept)):
                self.upkeep.tombstones += there.num_rows - kept.num_rows

    def _replace(self, table: Table, tasks: Sequence[FileScanTask], groups: Iterable[Iterable[pa.Table]]) -> int:
        """Replace data files by others of the same rows, in one snapshot; return how many, 0 if others have changed them."""
        transaction = once(table).transaction()
        added: list[DataFile] = []
        for group in groups:
            added += write_files(transaction, table, group)
        wanted = {_mark(task) for task in tasks}
        for _ in range(COMMIT_ATTEMPTS):
            fresh = self._load()
            if not wanted <= {_mark(task) for tasks in by_partition(fresh) for task in tasks}:
                break
            if fresh.spec() != table.spec():
                break
            try:
                with once(fresh).transaction() as transaction:
                    replace(transaction, fresh, [task.file for task in tasks], added)
            except OVERTAKEN:
                continue
            return len(tasks)
        delete(table, [file.file_path for file in added])
        self.upkeep.left.append(f"{len(tasks)} files of a partition that a worker changes right now")
        return 0

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def _expire(self) -> set[int]:
        """Let go of old snapshots; return them."""
        for _ in range(COMMIT_ATTEMPTS):
            table = self._load()
            expired = self._old(table)
            self.upkeep.snapshots = len(expired)
            if not expired or self.dry_run:
                return expired
            self._tell(f"{len(expired)} snapshots")
            try:
                table.maintenance.expire_snapshots().by_ids(sorted(expired)).commit()
            except OVERTAKEN:
                continue
            return expired
        self.upkeep.snapshots = 0
        self.upkeep.left.append("old snapshots: workers keep committing")
        return set()

    def _old(self, table: Table) -> set[int]:
        limit = (self.now - self.ages.snapshots).timestamp() * 1_000
        snapshots = sorted(table.snapshots(), key=lambda one: one.timestamp_ms, reverse=True)
        named = {ref.snapshot_id for ref in table.metadata.refs.values()}
        old = {snapshot.snapshot_id for snapshot in snapshots[self.ages.keep :] if snapshot.timestamp_ms < limit}
        return old - named

    # -- files that nothing refers to ---------------------------------------------------------------------------------

    def _remove_orphans(self, expired: set[int]) -> None:
        """Remove what is old enough and what no snapshot, no manifest and no metadata of the table refers to."""
        limit = self.now - self.ages.orphans
        listed = dict(files_below(self._load()))  # before the metadata: what is committed later is not in it
        table = self._load()
        referred = {location_path(table, location) for location in referred_to(table, expired)}
        if missing := self._not_listed(table):
            # Who cannot find the table's own files must not say which are nobody's.
            self.upkeep.left.append(f"files that nothing refers to: {missing} is not where the table says it is")
            return
        orphans = [one for path, one in listed.items() if path not in referred and one.modified < limit]
        self.upkeep.orphans = len(orphans)
        if orphans:
            self._tell(f"{len(orphans)} files that nothing refers to")
        if not self.dry_run:
            delete(table, [orphan.location for orphan in orphans])

    def _not_listed(self, table: Table) -> str:
        """Return a file of the table as it is now that the listing of its location does not have."""
        current, root = table.current_snapshot(), location_path(table, table.location()).rstrip("/")
        files = {
            location_path(table, location) for location in table_files(table, [current] if current is not None else [])
        }
        below = {path for path in files if path.startswith((f"{root}/data/", f"{root}/metadata/"))}
        return min(below - dict(files_below(table)).keys(), default="")


def by_partition(table: Table) -> list[list[FileScanTask]]:
    """Return the data files of each partition, the oldest changes first."""
    found: dict[object, list[FileScanTask]] = {}
    for task in table.scan().plan_files():
        found.setdefault((task.file.spec_id, task.file.partition), []).append(task)
    column = next((one.field_id for one in table.schema().fields if one.name in {"_changed_at", "changed_at"}), -1)

    def begin(task: FileScanTask) -> int:
        return int.from_bytes((task.file.lower_bounds or {}).get(column, b""), "little", signed=True)

    return [sorted(tasks, key=begin) for tasks in found.values()]


def newest_tombstones(rows: pa.Table, oldest: datetime) -> pa.Table:
    """Return the newest tombstone of each item, without those that were written before a moment; the oldest versions first."""
    rows = rows.filter(pc.greater_equal(rows.column("_written_at"), pa.scalar(oldest)))
    others = [PARTITION, VERSION, "_changed_at", "_written_at"]
    newest = rows.group_by("_key").aggregate([(name, "max") for name in others])
    newest = newest.rename_columns([name.removesuffix("_max") for name in newest.column_names])
    return newest.select(TOMBSTONE.names).sort_by(VERSION).cast(TOMBSTONE)


def referred_to(table: Table, expired: set[int]) -> set[str]:
    """Return the locations of everything that a table's metadata refer to, but by expired snapshots alone."""
    metadata = table.metadata
    found = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    found |= {statistic.statistics_path for statistic in (*metadata.statistics, *metadata.partition_statistics)}
    return found | table_files(
        table, [snapshot for snapshot in metadata.snapshots if snapshot.snapshot_id not in expired]
    )


def table_files(table: Table, snapshots: Iterable[Snapshot]) -> set[str]:
    """Return the locations of the files of snapshots."""
    lists, manifests = set[str](), dict[str, ManifestFile]()
    for snapshot in snapshots:
        lists.add(snapshot.manifest_list)
        manifests |= {one.manifest_path: one for one in snapshot.manifests(table.io)}
    entries = (manifest.fetch_manifest_entry(table.io, discard_deleted=True) for manifest in manifests.values())
    return lists | manifests.keys() | {entry.data_file.file_path for some in entries for entry in some}


def _mark(task: FileScanTask) -> object:
    """Return what tells a data file, and what was deleted from it, from others."""
    return task.file.file_path, frozenset(delete_file.file_path for delete_file in task.delete_files)


def _pieces(table: Table, tasks: Sequence[FileScanTask]) -> Iterator[pa.Table]:
    transaction = table.transaction()
    return (read_file(transaction, table, task) for task in tasks)


def _slices(rows: pa.Table) -> Iterator[list[pa.Table]]:
    """Return what becomes one file each."""
    return ([rows.slice(begin, TOMBSTONES_A_FILE)] for begin in range(0, rows.num_rows, TOMBSTONES_A_FILE))
