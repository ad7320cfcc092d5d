"""The lake: sink topics as Parquet files in an object store.

Exactly once, without a lock. The files of one flush hold the rows of a range of offsets. The first of them, which holds the
first row, says in its footer where the range ends; it is written only if there is none of its name, and before the others.
Whoever finds it there (an earlier try, a former owner, a zombie) takes over its range: the same rows make the same files,
and what is missing of them is written. The committed offset moves when all are there and listed, each by its entry.

Names carry the log: files of a topic that was recreated, or of another cluster, are others at the same offsets. Files of an
earlier version have names without it. Where a flush that such a version has begun may be found, one is known by the event ID
of its first row; and the first flush after an offset without a log takes names of that form, so that a worker of that
version that wakes up late finds them.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from confluent_kafka import Message
from faust.types import TP

from pipeline.errors import FatalError
from pipeline.sinks.base import NOTHING, Flushed, Rejected, Sink, Writer, offset_is_of
from pipeline.sinks.lake import manifests, series
from pipeline.sinks.lake.layouts import Layout
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.parquet import OpenFile, Range, first_row_in, range_in
from pipeline.sinks.lake.paths import Directories, file_name, keys_of, mark_of
from pipeline.sinks.moves import Moves
from pipeline.sinks.rows import RowReader
from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log

log = logging.getLogger(__name__)
Gaps = Callable[[str], Iterable[manifests.ManifestGap]]


@dataclass(frozen=True)
class Rotation:
    """When a file is closed."""

    max_rows: int
    max_size: int
    """Bytes of the file, roughly."""
    max_age: float
    """Seconds since its first row came."""
    max_span: float
    """Seconds of event time that its rows span; 0: any."""


class LakeSink(Sink):
    """Parquet files."""

    name = "lake"

    def __init__(
        self,
        objects: Objects,
        layout: Layout,
        sinks: Mapping[str, str],
        rotation: Rotation,
        *,
        path: str,
        clock: Callable[[], float],
        memory: int = Sink.memory,
        gaps: Gaps = lambda _table: (),
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`sinks`: their topics by name. `path`: the template of the directories; '' for the one that the lake has.

        `gaps`: those known of a table. `ready` returns when the schemas are read.
        """
        self.objects, self.layout, self.rotation, self.clock, self.gaps = objects, layout, rotation, clock, gaps
        self.memory = memory
        self.told: manifests.Told = set()
        self._path, self._ready = path, ready
        self._sink_of = {topic: sink for sink, topic in sinks.items()}
        self._laid_out = False
        self.moves = Moves(sinks)

    def open(self, tp: TP, start: int, log: Log = UNKNOWN, committed: Committed = NOTHING) -> Writer:
        """Take a partition over. What a former owner has begun is found by its name when the first file is written."""
        self._ready()
        self._lay_out()
        return LakeWriter(self, tp, start, Directories(self._path, self._sink_of[tp.topic]), log, committed)

    def _lay_out(self) -> None:
        """Find out how the lake's directories are called, once."""
        if self._laid_out:
            return
        self._path = path = series.series_path(self.objects, self._path)
        if "{sink}" in path:  # each sink has a directory of its own: an item that has left one is not there any more
            self.moves = Moves(())
        self.layout.reserve(keys_of(path))
        self._laid_out = True


@dataclass
class _Sealed:
    """The files of a range, on their way."""

    end: int
    files: list[tuple[str, OpenFile]]
    """By directory; the one with the first row is first."""
    mark: str = ""
    """Of the log, in the names of the files."""
    contents: list[bytes] | None = None
    decided: bool = False
    """Whether the first file is there: nobody can make the range another one any more."""


class LakeWriter(Writer):
    """One partition on its way into files."""

    def __init__(
        self, lake: LakeSink, tp: TP, start: int, directories: Directories, source: Log, committed: Committed
    ) -> None:
        self._lake, self._tp, self._directories, self._reader = lake, tp, directories, RowReader()
        self._log, self._mark = source, mark_of(source)
        self._former = _Former.of(source, committed, start)
        self._series: series.Series | None = _series(tp, start, source, committed)
        """To be recorded; None: it is."""
        self._rejected: list[Rejected] = []
        """Records that cannot be written, of ranges that are not done yet."""
        self._open: dict[str, OpenFile] = {}
        self._begin = self._taken = start
        self._since = 0.0
        self._sealed: _Sealed | None = None
        self._until = 0
        """The end of a range that was found begun, beyond what was read so far; 0: none."""

    def add(self, records: Sequence[Message], end: int) -> Sequence[Rejected]:
        """Decode records as far as their place and their time need it, and put them where they belong."""
        rejected: list[Rejected] = []
        if records and self._taken <= self._begin:
            self._since = self._lake.clock()
        for rows, refused in self._reader.read(records):
            rejected += refused
            for directory, part in self._directories.parts(self._lake.moves.without(rows)):
                file = self._open.get(directory)
                if file is None:
                    table = part.kinds[0].table
                    file = self._open[directory] = OpenFile(self._lake.layout, table, self._tp.partition)
                file.add(part)
        self._taken = end
        return rejected

    @property
    def size(self) -> int:
        """Bytes that are held in memory, roughly."""
        sealed = sum(map(len, self._sealed.contents or ())) if self._sealed is not None else 0
        return sealed + sum(file.size for file in list(self._open.values()))

    def is_due(self, now: float) -> bool:
        """Say whether files are to be closed: large or old enough, or begun by somebody before us."""
        if self._sealed is not None:
            return True
        if self._until:
            return self._taken >= self._until
        if self._taken <= self._begin and not self._open:
            return False
        rotation, files = self._lake.rotation, self._open.values()
        return (
            now - self._since >= rotation.max_age
            or sum(file.rows for file in files) >= rotation.max_rows
            or sum(file.file_size for file in files) >= rotation.max_size
            or bool(
                rotation.max_span
                and files
                and max(file.newest for file in files) - min(file.oldest for file in files)
                >= rotation.max_span * 1_000_000
            )
        )

    def flush(self) -> Flushed:
        """Write the files of a range: the first of them decides on it, the others follow."""
        if self._until > self._taken:
            return Flushed(self._begin)  # forced, but what was begun reaches further
        sealed = self._sealed or self._seal()
        if sealed is None:
            return self._leave_out()
        objects, written = self._lake.objects, 0
        self._begin_series()
        if sealed.contents is None:
            sealed.mark = self._mark_for(sealed)
            covered = Range(
                sealed.end, [self._path(sealed, number) for number in range(len(sealed.files))], str(self._log)
            )
            sealed.contents = [file.close(covered) for _, file in sealed.files]
        for number in range(len(sealed.files)):
            path, content = self._path(sealed, number), sealed.contents[number]
            if objects.create(path, content):
                written += 1
            else:  # the same rows, perhaps with fewer columns: the manifest is to tell of what is there
                there = objects.read(path)
                if number == 0 and not sealed.decided:
                    self._require_ours(path, there, sealed)
                    if (found := range_in(there)).end != sealed.end:
                        return self._take_over(sealed, found)
                else:
                    self._require_same_range(path, there, sealed)
                sealed.contents[number] = there
            sealed.decided = True
        self._list(sealed)
        self._begin, self._sealed, self._until = sealed.end, None, 0
        rows = sum(file.rows for _, file in sealed.files)
        return self._done({"files": written, "rows": rows} if written else {})

    def _leave_out(self) -> Flushed:
        """Continue beyond records that were all refused; the lake tells that there are no rows of them."""
        if self._taken > self._begin:
            self._begin_series()
            rowless = series.Rowless(self._tp.topic, self._tp.partition, str(self._log), self._begin, self._taken)
            series.leave_out(self._lake.objects, self._mark, rowless)
            self._begin = self._taken
        return self._done({})

    def _done(self, counts: Mapping[str, int]) -> Flushed:
        """Say what is done. The group's offset names the log before anything else is flushed."""
        if self._former is not None:
            self._former = self._former.after_flush
        rejected = [one for one in self._rejected if cast("int", one.record.offset()) < self._begin]
        self._rejected = [one for one in self._rejected if cast("int", one.record.offset()) >= self._begin]
        return Flushed(self._begin, counts, rejected)

    def _begin_series(self) -> None:
        if self._series is not None:
            series.begin_series(self._lake.objects, self._mark, self._series)
            self._series = None

    def _path(self, sealed: _Sealed, number: int) -> str:
        directory, file = sealed.files[number]
        return self._path_of(directory, file, sealed.mark)

    def _path_of(self, directory: str, file: OpenFile, mark: str) -> str:
        return f"{directory}/{file_name(self._tp.topic, self._tp.partition, file.first_offset, mark)}"

    def _mark_for(self, sealed: _Sealed) -> str:
        """Return the mark of a range's files: the log's, or that of an earlier version which has begun it, or may have."""
        (directory, file), objects, former = sealed.files[0], self._lake.objects, self._former
        if former is None or objects.exists(self._path_of(directory, file, self._mark)):
            return self._mark
        for mark in former.marks:
            path = self._path_of(directory, file, mark)
            if objects.exists(path):
                if first_row_in(objects.read(path)) == file.first:
                    former.was_met = True
                    return mark
                log.info("%s is of another log than %s[%d] is now", path, *self._tp)
                return self._mark
        return former.marks[0] if former.may_write else self._mark

    def _require_ours(self, path: str, content: bytes, sealed: _Sealed) -> None:
        """Raise FatalError when a file that should be ours begins with another change: its name does not tell the log."""
        there, ours = first_row_in(content), sealed.files[0][1].first
        if there != ours:
            raise FatalError(
                f"the lake {self._lake.objects.url}: {path} begins with the change {there.event_id}, and {self._tp.topic}"
                f"[{self._tp.partition}] has {ours.event_id} at offset {ours.offset}: the topic was recreated",
                hint="set lake.url to another place; the files that are there stay readable",
            )

    def _require_same_range(self, path: str, content: bytes, sealed: _Sealed) -> None:
        """Raise FatalError when a file that should be of our range is of another: its rows are not those that it should have.

        So it is where Kafka has forgotten the group's offset, and the files that it was written with were merged into others.
        """
        if (end := range_in(content).end) != sealed.end:
            raise FatalError(
                f"the lake {self._lake.objects.url}: {path} holds rows up to offset {end}, not to {sealed.end}: the lake has "
                f"{self._tp.topic}[{self._tp.partition}] from {self._begin} on already, and Kafka has forgotten it",
                hint="set the group's offset to where the lake ends: headwater lake verify; kafka-consumer-groups.sh "
                "--reset-offsets --to-offset N",
            )

    def _seal(self) -> _Sealed | None:
        """Close the range: of what was taken, or of what somebody has begun before us."""
        end = self._until or self._taken
        for file in self._open.values():
            self._rejected += file.settle()
        self._open = {directory: file for directory, file in self._open.items() if file.rows}
        inside, outside = self._open, dict[str, OpenFile]()
        if end < self._taken:
            parts = {directory: file.split(end) for directory, file in self._open.items()}
            inside = {directory: part for directory, (part, _) in parts.items() if part is not None}
            outside = {directory: part for directory, (_, part) in parts.items() if part is not None}
        self._open, self._since = outside, self._lake.clock()
        if not inside:
            return None
        files = sorted(inside.items(), key=lambda item: item[1].first_offset)
        self._sealed = _Sealed(end, files)
        return self._sealed

    def _take_over(self, sealed: _Sealed, found: Range) -> Flushed:
        """Make the range that somebody has begun our own; what is here already of it is cut to it."""
        log.info("%s[%d] up to %d is in files already", self._tp.topic, self._tp.partition, found.end)
        for directory, file in sealed.files:
            if (later := self._open.get(directory)) is not None:
                file.extend(later)
            self._open[directory] = file
        self._sealed, self._until = None, found.end
        if self._until > self._taken:
            return Flushed(self._begin)
        return self.flush()

    def _list(self, sealed: _Sealed) -> None:
        """List the files: an entry for each."""
        topic, partition = self._tp
        for (directory, file), content in zip(sealed.files, cast("list[bytes]", sealed.contents), strict=True):
            path = self._path_of(directory, file, sealed.mark)
            entry = manifests.File(
                path,
                file.rows,
                len(content),
                hashlib.sha256(content).hexdigest(),
                file.table_name,
                file.oldest,
                file.newest,
                *file.sequences,
                [manifests.FileRange(topic, partition, file.first_offset, self._begin, sealed.end, str(self._log))],
            )
            manifests.add(self._lake.objects, entry, self._lake.gaps(file.table_name), self._lake.told)


@dataclass
class _Former:
    """Names of files that an earlier version, which did not know the log, may have begun at the offset that comes next."""

    marks: tuple[str, ...]
    may_write: bool
    """Whether a worker of it may wake up and write from that offset on."""
    was_met: bool = False
    """Whether the flush has met such a file: then there may be more of them, if Kafka has forgotten the group's offset."""

    @classmethod
    def of(cls, source: Log, committed: Committed, start: int) -> _Former | None:
        """Return them; None where all names are ours."""
        its = offset_is_of(source, committed, start)
        own, known = mark_of(source), mark_of(committed.log)
        marks = dict.fromkeys([*([known] if its != "other" else []), "", mark_of(Log(source.cluster))])
        marks.pop(own, None)
        may_write = its == "before" or (its == "same" and known != own)
        return cls(tuple(marks), may_write) if marks else None

    @property
    def after_flush(self) -> _Former | None:
        """What may be met by the next flush."""
        return _Former(self.marks, may_write=False) if self.was_met else None


def _series(tp: TP, start: int, source: Log, committed: Committed) -> series.Series:
    its = offset_is_of(source, committed, start)
    former = (str(committed.log), committed.offset or 0) if its == "other" else ("", -1)
    return series.Series(*tp, str(source), start, its == "before", round(time.time(), 3), *former)
