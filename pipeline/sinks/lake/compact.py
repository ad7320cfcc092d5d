"""Compacts the directories of a lake: makes few large files of many small ones, and removes what is left over.

Only files whose offsets are committed are touched: what may still be tried again keeps its name. Of each directory the large
files are written first. Then the manifest is changed in one step: they come, and the small ones and their entries no longer
count. Then the small files are deleted, and their entries last: a directory that has entries is looked at by the next run. So a
run may end anywhere. Readers of what is listed see each row once at any time; readers by listing see rows twice for a moment.

A file that nothing lists is deleted only when each of its rows is in a file that is listed.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sinks.lake import manifests
from pipeline.sinks.lake.layouts.columns import united
from pipeline.sinks.lake.manifests import Content, File, FileRange, Names, RowsBegin
from pipeline.sinks.lake.objects import Objects, StoredObject
from pipeline.sinks.lake.parquet import RANGE, range_of
from pipeline.sinks.lake.paths import mark_of, origin_of
from pipeline.transport.logs import UNKNOWN, Log

Committed = Callable[[str, int], int]
"""Returns the offset that the lake's group has committed in a partition of a topic, of its log as it is now."""
LogOf = Callable[[str], Log]
"""Returns the log of a topic as it is now."""
MERGED = "compacted-"
ABANDONED = timedelta(hours=24)
"""Age from which on a large file that nothing lists belongs to a run that has ended."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was done in a directory."""

    directory: str
    before: int
    """Small files that were there ..."""
    after: int
    """... and what was made of them."""
    rows: int
    bytes_before: int = 0
    bytes_after: int = 0
    """0 in a dry run: it is not known."""
    orphans: int = 0
    """Files that were deleted since each of their rows is in a file that is listed."""
    entries: int = 0
    """Entries that are spent."""
    left: tuple[str, ...] = ()
    """What was left as it is, and why, in words."""

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def compact(
    objects: Objects,
    committed: Committed,
    *,
    prefix: str = "",
    size: int,
    older_than_us: int,
    dry_run: bool = False,
    log_of: LogOf = lambda _topic: UNKNOWN,
    at_rest: bool = False,
    require: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda _n, _of: None,
) -> Iterator[Compacted]:
    """Tend the directories below a prefix; files of `size` bytes or more stay, and those with changes after a time.

    What is committed must be known before this is called. `at_rest`: no worker writes to the lake any more. `require` is called
    before each change, and raises where this run may not continue.
    """

    def is_done(origin: FileRange) -> bool:
        """Say whether nobody tries to write these rows any more; of another cluster nobody here can tell."""
        its, now = Log.parse(origin.log), log_of(origin.topic)
        if at_rest:
            return True
        if its.may_be(now):
            return origin.end <= committed(origin.topic, origin.partition)
        return its.cluster == now.cluster

    found = objects.listed(prefix)
    if prefix:
        found += objects.listed(f"{manifests.DIRECTORY}/{prefix}")
    names, files = manifests.by_directory(one.path for one in found), defaultdict[str, list[StoredObject]](list)
    for one in found:
        if one.path.endswith(manifests.SUFFIX):
            files[one.path.rpartition("/")[0]].append(one)
    busy = sorted(name for name in names.keys() | files.keys() if _is_busy(names.get(name, Names()), len(files[name])))
    for number, directory in enumerate(busy):
        tended = _Directory(objects, directory, files[directory], is_done, size, older_than_us, dry_run)
        done = tended.tend(names.get(directory, Names()), require)
        if done.before != done.after or done.orphans or done.entries or done.left:
            yield done
        progress(number + 1, len(busy))


def _is_busy(names: Names, files: int) -> bool:
    """Say whether there may be something to do, by names alone: a directory that was compacted has one file, and no entries."""
    return files > 1 or len(names.entries) > (0 if names.manifest else 1)


class _Directory:
    """One directory, as this run has found it."""

    def __init__(
        self,
        objects: Objects,
        directory: str,
        there: Sequence[StoredObject],
        is_done: Callable[[FileRange], bool],
        size: int,
        older_than_us: int,
        dry_run: bool,
    ) -> None:
        self._objects, self._directory, self._there = objects, directory, there
        self._is_done, self._size, self._older_than_us, self._dry_run = is_done, size, older_than_us, dry_run
        self._left: list[str] = []

    def tend(self, names: Names, require: Callable[[], None]) -> Compacted:
        """Do what is to be done."""
        broken: list[str] = []
        (content,) = manifests.contents(
            self._objects, {self._directory: names}, broken=lambda path, why: broken.append(f"{path}: {why}")
        )
        if broken:
            return Compacted(self._directory, 0, 0, 0, left=tuple(broken))
        inside = manifests.merged_rows(content.files)
        settled = [
            file
            for file in content.files
            if file.newest < self._older_than_us
            and all(map(self._is_done, file.origins))
            and (manifests.is_merged(file) or not any(rows in inside for rows in manifests.rows_of(file)))
        ]
        small = [file for file in settled if file.bytes < self._size]
        groups = [group for group in _groups(small, self._size) if self._is_whole(group)]
        merged = {file.path for group in groups for file in group}
        made: list[File] = []
        for group in () if self._dry_run else groups:
            if (large := self._merge(group)) is None:
                return self._overtaken()
            made.append(large)
        moved = self._movable(content, settled, merged, has_manifest=names.manifest or bool(groups))
        if not self._dry_run and (made or moved):
            require()
            hidden = {file.path for file in content.manifest.files} - {file.path for file in content.files}
            if not manifests.exchange(self._objects, self._directory, added=[*made, *moved], removed=hidden | merged):
                return self._overtaken()
        orphans = list(self._orphans(content))
        listed = merged | {file.path for file in moved}
        entries = [path for path, file in content.entries.items() if file.path in listed]
        entries += sorted(content.spent)
        if not self._dry_run and (merged or orphans or entries):
            require()
            self._objects.delete_all([*sorted(merged), *orphans])
            self._objects.delete_all(entries)  # last: they say that there is something to do here
        return Compacted(
            self._directory,
            len(small),
            len(small) - len(merged) + len(groups),
            sum(file.rows for file in small),
            sum(file.bytes for file in small),
            sum(file.bytes for file in small if file.path not in merged) + sum(file.bytes for file in made)
            if made
            else 0,
            len(orphans),
            len(entries),
            tuple(self._left),
        )

    def _overtaken(self) -> Compacted:
        return Compacted(self._directory, 0, 0, 0, left=(f"{self._directory}: another run is at work there",))

    def _is_whole(self, group: Sequence[File]) -> bool:
        """Say whether files can be merged: there are several, and all are there."""
        missing = {file.path for file in group} - {one.path for one in self._there}
        self._left += [f"{path} is listed but missing: headwater lake verify" for path in sorted(missing)]
        return len(group) > 1 and not missing

    @staticmethod
    def _movable(
        content: Content, settled: Sequence[File], merged: Collection[str], *, has_manifest: bool
    ) -> list[File]:
        """Return files whose entries are to be moved to the manifest: each saves its readers a request."""
        entered = {file.path for file in content.entries.values()}
        found = [file for file in settled if file.path in entered and file.path not in merged]
        return found if has_manifest or len(found) > 1 else []

    def _merge(self, group: Sequence[File]) -> File | None:
        """Write a file with the rows of others; None when one of them is gone."""
        tables = []
        for content in self._objects.find_all(file.path for file in group).values():
            if content is None:
                return None
            tables.append(pq.read_table(io.BytesIO(content)).replace_schema_metadata(None))
        table = united(tables)
        out = io.BytesIO()
        pq.write_table(table, out, compression="zstd")
        content = out.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        new = File(
            f"{self._directory}/{MERGED}{digest[:32]}{manifests.SUFFIX}",
            table.num_rows,
            len(content),
            digest,
            group[0].table,
            min(file.oldest for file in group),
            max(file.newest for file in group),
            group[0].first_sequence,
            group[-1].last_sequence,
            [origin for file in group for origin in file.origins],
        )
        self._objects.create(new.path, content)
        return new

    # -- what is left over --------------------------------------------------------------------------------------------

    def _orphans(self, content: Content) -> Iterator[str]:
        """Yield files that nothing lists, that nobody may still want to write, and that nobody misses."""
        listed = {file.path for file in content.files}
        for one in self._there:
            if one.path in listed:
                continue
            if origin_of(one.path) is not None:
                if self._is_elsewhere(one.path, content.files):
                    yield one.path
            elif one.path.rpartition("/")[2].startswith(MERGED) and datetime.now(UTC) - one.modified > ABANDONED:
                yield one.path

    def _is_elsewhere(self, path: str, listed: Sequence[File]) -> bool:
        """Say whether each row of a file is in one that is listed, and nobody writes it any more."""
        named, found = origin_of(path), self._objects.find(path)
        if named is None or found is None:
            return False
        try:
            metadata = pq.read_metadata(io.BytesIO(found)).metadata or {}
        except (pa.ArrowException, OSError) as error:
            self._left.append(f"{path}: {error}")
            return False
        if RANGE not in metadata:
            return False
        covered = range_of(metadata)
        begun = FileRange(named.topic, named.partition, named.offset, named.offset, covered.end, covered.log)
        if not self._is_done(begun):
            return False  # its flush is under way, or will be taken over
        mark = mark_of(Log.parse(covered.log)) or named.mark
        same = RowsBegin(named.topic, named.partition, mark, named.offset)
        if manifests.merged_rows(listed).get(same, -1) >= covered.end:
            return True
        rows = _rows_in(found)
        for file in listed:
            ranges = [
                range(origin.first, origin.end)
                for origin in file.origins
                if (origin.topic, origin.partition) == (named.topic, named.partition) and self._is_done(origin)
            ]
            mine = {row for row in rows if any(row[0] in some for some in ranges)}
            if mine and (stored := self._objects.find(file.path)) is not None:
                rows -= mine & _rows_in(stored)
        if rows:
            self._left.append(f"{path}: nothing lists it, and some of its rows are in no other file: it stays")
        return not rows


def _rows_in(content: bytes) -> set[tuple[int, str]]:
    """Return offset and event ID of each row of a file."""
    table = pq.read_table(io.BytesIO(content))
    prefix = "_" if "_offset" in table.schema.names else ""
    columns = (table.column(f"{prefix}{name}").to_pylist() for name in ("offset", "event_id"))
    return set(zip(*columns, strict=True))


def _groups(files: Sequence[File], size: int) -> Iterator[list[File]]:
    """Yield files that make one of about the size, in the order of their records."""
    group, total = list[File](), 0
    for file in sorted(files, key=lambda one: [(o.topic, o.partition, o.log, o.first) for o in one.origins]):
        if group and total + file.bytes > size:
            yield group
            group, total = [], 0
        group.append(file)
        total += file.bytes
    if group:
        yield group
