"""Items as they are now, by the age of their changes: what a table has, what was deleted, and which changes are newer.

A flush reads the versions of its items from the table, and brings only what is as new or newer. So the table ends with the
newest state of each item, wherever its changes are on which topic: a promoted replay, two sinks of one table, a dead letter
that is retried.

Of a deleted item the table has no row. Its version stays in a second table, of tombstones, in a namespace of its own (every
name that a catalog takes may be the name of a DynamoDB table). Two writers of one table that know nothing of each other
keep the order so:

1. load the table; 2. read the tombstones of the items that it lacks; 3. write the tombstones of the items that are deleted
now; 4. commit to the table what was loaded in 1, as a new snapshot, which fails when there is another by then.

Whoever loads the table after a deletion was committed (4) reads its tombstone (3) afterwards (2). Whoever has loaded it
before fails (4), and begins again. So a flush that deletes always makes a snapshot, even where no row is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, EqualTo, GreaterThanOrEqual, LessThanOrEqual
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.table import FileScanTask, Table, Transaction

from pipeline.errors import TransientError
from pipeline.sinks.lake.iceberg.columns import DOC, VERSION
from pipeline.sinks.lake.iceberg.commit import PARTITION, begin_table, iceberg_partition, set_properties
from pipeline.sinks.lake.iceberg.errors import OVERTAKEN
from pipeline.sinks.rows import Rows
from pipeline.sinks.versions import version, version_before

log = logging.getLogger(__name__)
COMMIT_ATTEMPTS = 10
"""Commits that are tried in a row when others commit to the same table."""
TOMBSTONES = "headwater.tombstones"
"""Property of a table of tombstones: the namespace of the table whose deleted items it holds."""
TOMBSTONE = pa.schema(
    [
        pa.field("_key", pa.string(), nullable=False),
        pa.field(PARTITION, pa.int32(), nullable=False),
        pa.field(VERSION, pa.string(), nullable=False),
        pa.field("_changed_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("_written_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


class NewestChange(NamedTuple):
    """The newest change of an item among those of a flush."""

    version: str
    place: int
    """Where it is among them."""


def newest_of(rows: Rows) -> dict[str, NewestChange]:
    """Return the newest change of each item, by its key; of two of one age, the later one."""
    found: dict[str, NewestChange] = {}
    for place, (key, change, offset) in enumerate(zip(rows.keys, rows.changes, rows.offsets, strict=True)):
        this, key_text = version(change, offset), key.decode()
        if key_text not in found or found[key_text].version <= this:
            found[key_text] = NewestChange(this, place)
    return found


class ItemsInTable(NamedTuple):
    """What a table has of some items."""

    versions: dict[str, str]
    """By key, the greatest version."""
    files: list[FileScanTask]
    """The data files that have rows of them."""


def look_for(table: Table | None, keys: Iterable[str], partition: int | None) -> ItemsInTable:
    """Return what a table has of items; `partition`: that of the topic in which all of them are, None if in any."""
    wanted, found = pa.array(sorted(keys), pa.string()), ItemsInTable({}, [])
    if table is None or not len(wanted) or table.current_snapshot() is None:
        return found
    names = [name for name in ("_key", VERSION, "_changed_at", "_sequence", "_offset") if name in _plain(table)]
    where: BooleanExpression = And(
        GreaterThanOrEqual(term="_key", value=wanted[0].as_py()), LessThanOrEqual(term="_key", value=wanted[-1].as_py())
    )
    if partition is not None:
        where = And(EqualTo(term=iceberg_partition(table), value=partition), where)
    schema = table.schema().select(*(names[:2] if VERSION in names else names))
    whole = table.schema().select(*names)
    for task in table.scan(where).plan_files():
        rows = _matching(table, schema, task, wanted)
        if not rows.num_rows:
            continue
        found.files.append(task)
        if VERSION not in rows.column_names or rows.column(VERSION).null_count:
            rows = _matching(table, whole, task, wanted)
        for key, this in _versions(rows):
            if found.versions.get(key, "") < this:
                found.versions[key] = this
    return found


def _plain(table: Table) -> set[str]:
    """Return the columns that hold no attribute."""
    return {field.name for field in table.schema().fields if not (field.doc or "").startswith(DOC)}


def _matching(table: Table, schema: object, task: FileScanTask, keys: pa.Array) -> pa.Table:
    rows = ArrowScan(table.metadata, table.io, schema, AlwaysTrue()).to_table([task])  # type: ignore[arg-type]
    return rows.filter(is_one_of(rows, keys))


def is_one_of(rows: pa.Table, keys: pa.Array) -> pa.ChunkedArray:
    """Say of each row whether its item is one of these."""
    column = rows.column("_key")
    return pc.is_in(column, value_set=keys.cast(column.type))


def _versions(rows: pa.Table) -> Iterable[tuple[str, str]]:
    """Yield keys and versions; a row of an earlier version has that of its change as far as it says it."""
    keys = rows.column("_key").to_pylist()
    versions = rows.column(VERSION).to_pylist() if VERSION in rows.column_names else [None] * len(keys)
    if None not in versions:
        yield from zip(keys, versions, strict=True)
        return
    times = rows.column("_changed_at").cast(pa.int64()).to_pylist()
    more = (times, rows.column("_sequence").to_pylist(), rows.column("_offset").to_pylist())
    for key, this, time, sequence, offset in zip(keys, versions, *more, strict=True):
        yield key, this if this is not None else version_before(time, sequence or "", offset)


def deleted_of(namespace: str) -> str:
    """Return the namespace of the tombstones of a namespace's tables: there they have the same names."""
    return f"{namespace}_deleted"


class Tombstones:
    """The versions of the deleted items of a table."""

    def __init__(self, catalog: Catalog, namespace: str, name: str) -> None:
        self._catalog, self._namespace, self._of = catalog, deleted_of(namespace), namespace
        self._name = (self._namespace, name)

    def versions(self, since: Mapping[str, str], partition: int | None) -> dict[str, str]:
        """Return the greatest versions of deleted items, by key; those that are older than the asked one may be missing."""
        found: dict[str, str] = {}
        if not since:
            return found
        try:
            table = self._catalog.load_table(self._name)
        except NoSuchTableError:
            return found
        # Files whose tombstones are all older than what comes are not read: nearly all of them, as a rule.
        where: BooleanExpression = GreaterThanOrEqual(term=VERSION, value=min(since.values()))
        if partition is not None:
            where = And(EqualTo(term=PARTITION, value=partition), where)
        keys = pa.array(list(since), pa.string())
        for batch in table.scan(where, selected_fields=("_key", VERSION)).to_arrow_batch_reader():
            rows = pa.Table.from_batches([batch])
            rows = rows.filter(is_one_of(rows, keys))
            for key, this in zip(rows.column("_key").to_pylist(), rows.column(VERSION).to_pylist(), strict=True):
                if found.get(key, "") < this:
                    found[key] = this
        return found

    def add(self, partition: int, deleted: Mapping[str, str], times: Sequence[int]) -> None:
        """Write tombstones: keys and versions, and when the changes happened, in microseconds. They are permanent then."""
        now = int(datetime.now(UTC).timestamp() * 1_000_000)
        columns = [
            pa.array(list(deleted), pa.string()),
            pa.array([partition] * len(deleted), pa.int32()),
            pa.array(list(deleted.values()), pa.string()),
            pa.array(times, pa.int64()).cast(TOMBSTONE.field("_changed_at").type),
            pa.array([now] * len(deleted), pa.int64()).cast(TOMBSTONE.field("_written_at").type),
        ]
        data = pa.Table.from_arrays(columns, schema=TOMBSTONE)
        for _ in range(COMMIT_ATTEMPTS):
            try:
                with self._begin() as transaction:
                    transaction.append(data)
                    set_properties(transaction, {})
            except OVERTAKEN as error:
                log.info("tombstones are written to %s.%s again: %s", *self._name, error)
                continue
            return
        raise TransientError(f"the Iceberg table {'.'.join(self._name)}: others keep committing to it")

    def _begin(self) -> Transaction:
        try:
            return self._catalog.load_table(self._name).transaction()
        except NoSuchTableError:
            try:
                self._catalog.create_namespace_if_not_exists(self._namespace)
            except NamespaceAlreadyExistsError:
                log.debug("the namespace %s is there", self._namespace)
            return begin_table(self._catalog, self._name, TOMBSTONE, PARTITION, {TOMBSTONES: self._of})
