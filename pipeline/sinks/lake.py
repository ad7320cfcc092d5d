"""The lake: sink topics as Parquet files in an object store.

Exactly once, without a lock. The files of one flush hold the rows of a range of offsets. The first of them, which holds the
first row, says in its footer where the range ends; it is written only if there is none of its name, and before the others.
Whoever finds it there (an earlier try, a former owner, a zombie) takes over its range: the same rows make the same files,
and what is missing of them is written. The committed offset moves when all are there and listed in their manifests.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from confluent_kafka import Message
from faust.types import TP

from pipeline.sinks import manifests
from pipeline.sinks.base import Flushed, Rejected, Sink, Writer
from pipeline.sinks.layouts import Layout
from pipeline.sinks.objects import Objects
from pipeline.sinks.parquet import OpenFile, Range, range_in
from pipeline.sinks.paths import Directories, name_of
from pipeline.sinks.rows import Reader

log = logging.getLogger(__name__)
Gaps = Callable[[str], Iterable[manifests.Gap]]


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
        """`sinks`: their topics by name. `gaps`: those known of a table. `ready` returns when the schemas are read."""
        self.objects, self.layout, self.rotation, self.clock, self.gaps = objects, layout, rotation, clock, gaps
        self.memory = memory
        self._path, self._ready = path, ready
        self._sink_of = {topic: sink for sink, topic in sinks.items()}

    def open(self, tp: TP, start: int) -> Writer:
        """Take a partition over. What a former owner has begun is found by its name when the first file is written."""
        self._ready()
        return LakeWriter(self, tp, start, Directories(self._path, self._sink_of[tp.topic]))


@dataclass
class _Sealed:
    """The files of a range, on their way."""

    end: int
    files: list[tuple[str, OpenFile]]
    """By directory; the one with the first row is first."""
    contents: list[bytes] | None = None
    decided: bool = False
    """Whether the first file is there: nobody can make the range another one any more."""


class LakeWriter(Writer):
    """One partition on its way into files."""

    def __init__(self, lake: LakeSink, tp: TP, start: int, directories: Directories) -> None:
        self._lake, self._tp, self._directories, self._reader = lake, tp, directories, Reader()
        self._open: dict[str, OpenFile] = {}
        self._begin = self._taken = start
        self._since = 0.0
        self._sealed: _Sealed | None = None
        self._until = 0
        """The end of a range that was found begun, beyond what was read so far; 0: none."""

    def add(self, records: Sequence[Message], end: int) -> Sequence[Rejected]:
        """Decode records as far as their place and their time need it, and put them where they belong."""
        rejected: list[Rejected] = []
        if records and not self._open:
            self._since = self._lake.clock()
        for rows, refused in self._reader.read(records):
            rejected += refused
            for directory, part in self._directories.parts(rows):
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
        if not self._open:
            return self._taken > self._begin
        rotation, files = self._lake.rotation, self._open.values()
        return (
            now - self._since >= rotation.max_age
            or sum(file.rows for file in files) >= rotation.max_rows
            or sum(file.file_size for file in files) >= rotation.max_size
            or bool(
                rotation.max_span
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
            self._begin = self._taken
            return Flushed(self._begin)
        if sealed.contents is None:
            paths = [f"{directory}/{self._name(file)}" for directory, file in sealed.files]
            sealed.contents = [file.close(Range(sealed.end, paths)) for _, file in sealed.files]
        objects, written = self._lake.objects, 0
        for number, (directory, file) in enumerate(sealed.files):
            path, content = f"{directory}/{self._name(file)}", sealed.contents[number]
            if objects.create(path, content):
                written += 1
            else:  # the same rows, perhaps with fewer columns: the manifest is to tell of what is there
                there = objects.read(path)
                if number == 0 and not sealed.decided and (found := range_in(there)).end != sealed.end:
                    return self._take_over(sealed, found)
                sealed.contents[number] = there
            sealed.decided = True
        self._list(sealed)
        self._begin, self._sealed, self._until = sealed.end, None, 0
        rows = sum(file.rows for _, file in sealed.files)
        return Flushed(sealed.end, {"files": written, "rows": rows} if written else {})

    def _name(self, file: OpenFile) -> str:
        return name_of(self._tp.topic, self._tp.partition, file.first_offset)

    def _seal(self) -> _Sealed | None:
        """Close the range: of what was taken, or of what somebody has begun before us."""
        end = self._until or self._taken
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
        """Enter the files into the manifests of their directories."""
        topic, partition = self._tp
        for (directory, file), content in zip(sealed.files, cast("list[bytes]", sealed.contents), strict=True):
            path = f"{directory}/{self._name(file)}"
            entry = manifests.File(
                path,
                file.rows,
                len(content),
                hashlib.sha256(content).hexdigest(),
                file.table_name,
                file.oldest,
                file.newest,
                *file.sequences,
                [manifests.Origin(topic, partition, file.first_offset, self._begin, sealed.end)],
            )
            manifests.add(self._lake.objects, directory, [entry], self._lake.gaps(file.table_name))
