"""Verifies a lake: every file is whole and as it was written, every offset is in one file, none is in two.

What should be there of a partition of a log goes from where the series began (pipeline/sinks/lake/series.py) to the offset
that the group has committed. The second is known to Kafka alone: without it, an end that is missing is not seen.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sinks.lake import series
from pipeline.sinks.lake.manifests import File, FileRange, by_directory, contents, entry_of, read_manifests
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.parquet import RANGE, range_of
from pipeline.sinks.lake.paths import mark_of, origin_of
from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where."""

    what: str
    path: str
    detail: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was looked at, and what was found."""

    manifests: int
    """Directories."""
    files: int
    rows: int
    bytes: int
    gaps: int
    """Changes known to be lost before they came to the lake, as the lake tells of them."""
    problems: tuple[Problem, ...]
    lost: tuple[Problem, ...] = ()
    """Offsets that are in no file and that a gap explains: Kafka deleted the records before they were read."""

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class Carried(NamedTuple):
    """What Kafka says of a partition of a sink topic."""

    topic: str
    partition: int
    log: Log
    """The log of the topic as it is now."""
    low: int
    """The first offset that it still has."""
    committed: Committed
    """Of the lake's group."""


class LostOffsets(NamedTuple):
    """Offsets that Kafka deleted before they were read."""

    topic: str
    partition: int
    first: int
    last: int
    log: str


def verify_lake(
    objects: Objects,
    prefix: str = "",
    *,
    whole: bool = True,
    carried: Sequence[Carried] = (),
    lost: Iterable[LostOffsets] = (),
    progress: Callable[[int, int], None] = lambda _n, _of: None,
) -> Checked:
    """Check what lies below a prefix. `whole`: read every file, not only whether it is there. Raises HeadwaterError.

    `carried`: what Kafka says, read before; `lost`: what it has deleted unread. Both count only without a prefix.
    """
    problems: list[Problem] = []
    found = read_manifests(objects, prefix, broken=lambda path, why: problems.append(Problem("unreadable", path, why)))
    files = [file for manifest in found for file in manifest.files]
    there = {path for path in objects.paths(prefix) if path.endswith(".parquet")}
    known_now = _Now(objects)
    problems += [
        Problem("not listed", path, "nothing lists it: its flush is under way, or a worker was away for a long time")
        for path in sorted(there - {file.path for file in files})
        if not known_now.lists(path)
    ]
    listed = ListedOrigins(origin for file in files for origin in file.origins)
    for number, file in enumerate(files):
        content = objects.find(file.path) if whole and file.path in there else None
        if content is not None:
            problems += _check(content, file, listed)
        elif (whole or file.path not in there) and known_now.lists(file.path):
            problems.append(Problem("missing", file.path, f"{file.rows} rows are not there"))
        progress(number + 1, len(files))
    gaps = {gap for manifest in found for gap in manifest.gaps}
    known = [*lost, *(LostOffsets(gap.topic, gap.partition, gap.first, gap.last, gap.log) for gap in gaps if gap.topic)]
    explained: list[Problem] = []
    if not prefix:  # else the neighbours are not seen
        begun, rowless = series.of_kind(series.read_series(objects))
        for hole in _holes(files, begun, rowless, carried, known):
            (explained if hole.is_lost else problems).append(hole.problem)
        problems += _doubled(listed.origins, begun)
    if not (found or there or problems):
        problems.append(
            Problem("empty", f"{objects.url}/{prefix}", "nothing is listed and there is no file: is the URL right?")
        )
    rows, size = sum(file.rows for file in files), sum(file.bytes for file in files)
    return Checked(len(found), len(files), rows, size, len(gaps), tuple(problems), tuple(explained))


class _Now:
    """What is listed at a later moment: maintenance may be at work, and put files in the place of others."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._listed: dict[str, set[str]] = {}

    def lists(self, path: str) -> bool:
        """Say whether a file is listed now."""
        directory = path.rpartition("/")[0]
        if directory not in self._listed:
            paths = [
                one
                for place in (directory, entry_of(directory).removesuffix(".json"))
                for one in self._objects.paths(place)
            ]
            names = {one: names for one, names in by_directory(paths).items() if one == directory}
            found = contents(self._objects, names, broken=lambda _path, _why: None)
            self._listed[directory] = {file.path for content in found for file in content.files}
        return path in self._listed[directory]


class ListedOrigins:
    """The origins that are listed."""

    def __init__(self, origins: Iterable[FileRange]) -> None:
        self.origins = sorted(set(origins), key=lambda one: (one.topic, one.partition, one.log, one.begin, one.first))
        self._places = {
            (origin.topic, origin.partition, origin.first, mark)
            for origin in self.origins
            for mark in {mark_of(Log.parse(origin.log)), ""}  # a file of an earlier version has a name without the log
        }

    def has(self, path: str) -> bool:
        """Say whether the rows of a file are in one that is listed."""
        origin = origin_of(path)
        return origin is None or tuple(origin) in self._places


def _check(content: bytes, file: File, listed: ListedOrigins) -> list[Problem]:
    """Return what is wrong with one file."""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return [Problem("altered", file.path, f"{len(content)} bytes, not the {file.bytes} that were written")]
    try:
        footer = pq.read_metadata(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        return [Problem("unreadable", file.path, str(error))]
    problems = list[Problem]()
    if footer.num_rows != file.rows:
        problems.append(Problem("rows", file.path, f"{footer.num_rows} rows, {file.rows} are listed"))
    if RANGE in (footer.metadata or {}):
        problems += [
            Problem("missing", path, f"it was to be written with {file.path}")
            for path in range_of(footer.metadata).paths
            if not listed.has(path)
        ]
    return problems


Key = tuple[str, int, str]
"""Of a series: topic, partition, the mark of its log."""
Span = tuple[int, int]
"""Offsets: from the first on, before the second."""


class Hole(NamedTuple):
    """Offsets that should be in a file and are in none."""

    topic: str
    partition: int
    begin: int
    end: int
    is_lost: bool = False
    """Whether a gap explains it: Kafka deleted the records before they were read."""
    below: int = 0
    """The offset up to which everything was carried, of a hole at the end; 0: others follow it."""
    oldest_before: int = 0
    """Time of the oldest change in the files before it, in microseconds since the epoch."""
    newest_after: int = 1 << 62
    """Time of the newest change in the files behind it."""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.problem.path}: {self.problem.detail}"

    @property
    def problem(self) -> Problem:
        """Return it in words."""
        where = f"{self.topic}[{self.partition}]"
        if self.is_lost:
            return Problem(
                "lost", where, f"Kafka deleted the offsets {self.begin} to {self.end - 1} before they were read"
            )
        if self.why:
            return Problem("missing", where, self.why)
        below = f", below the offset {self.below} that the group has committed" if self.below else ""
        return Problem("missing", where, f"offsets {self.begin} to {self.end - 1} are in no file{below}")


class Piece(NamedTuple):
    """Offsets that files hold, or that have no rows."""

    begin: int
    end: int
    oldest: int = 0
    newest: int = 1 << 62


def holes(
    objects: Objects, files: Sequence[File], carried: Iterable[Carried], lost: Iterable[LostOffsets]
) -> Iterator[Hole]:
    """Yield what is missing in a lake whose manifests list these files."""
    begun, rowless = series.of_kind(series.read_series(objects))
    return (hole for hole in _holes(files, begun, rowless, carried, lost) if not hole.is_lost)


def _holes(
    files: Iterable[File],
    begun: Iterable[series.Series],
    rowless: Iterable[series.Rowless],
    carried: Iterable[Carried],
    lost: Iterable[LostOffsets],
) -> Iterator[Hole]:
    """Yield the offsets that should be in a file and are in none."""
    pieces: dict[Key, list[Piece]] = {}
    for file in files:
        for origin in file.origins:
            piece = Piece(origin.begin, origin.end, file.oldest, file.newest)
            pieces.setdefault((origin.topic, origin.partition, mark_of(Log.parse(origin.log))), []).append(piece)
    for none in rowless:
        key = none.topic, none.partition, mark_of(Log.parse(none.log))
        pieces.setdefault(key, []).append(Piece(none.begin, none.end))
    beginnings = {(one.topic, one.partition, mark_of(Log.parse(one.log))): one for one in begun}
    now = {(found.topic, found.partition, mark_of(found.log)): found for found in carried}
    for key in {*beginnings, *now}:  # what an earlier version has written belongs to the log that it continued with
        follows = beginnings[key].follows if key in beginnings else now[key].committed.log == UNKNOWN
        if follows and key[2] and (former := pieces.pop((*key[:2], ""), None)):
            pieces.setdefault(key, []).extend(former)
    ends = {
        (begin.topic, begin.partition, mark_of(Log.parse(begin.former_log))): begin.former_end
        for begin in beginnings.values()
        if begin.former_log
    }
    gaps = list(lost)
    for key in sorted({*pieces, *beginnings, *now}):
        its = sorted(pieces.get(key, ()))
        yield from _holes_of(key, its, beginnings.get(key), now.get(key), ends.get(key, 0), gaps)


def _holes_of(
    key: Key,
    pieces: Sequence[Piece],
    begun: series.Series | None,
    now: Carried | None,
    former_end: int,
    lost: Sequence[LostOffsets],
) -> Iterator[Hole]:
    topic, partition, mark = key
    committed = now.committed.offset if now is not None and now.committed.log.may_be(now.log) else None
    end = max(former_end, committed or 0)
    if begun is not None and not begun.follows:
        at = begun.begin
    elif pieces:
        at = pieces[0].begin if now is None else min(now.low, pieces[0].begin)
    else:
        at = begun.begin if begun is not None else 0
    if begun is None and mark and pieces and (now is None or now.committed.log != UNKNOWN):
        why = f"{series.DIRECTORY}/{topic}+{mark}+{partition}.json, which says where the files begin, is not there"
        yield Hole(topic, partition, at, at, why=why)
    if not pieces and now is None and end <= at:
        why = f"of what begins at offset {at} there is no file, or the first one is being written"
        yield Hole(topic, partition, at, at, why=why)
    known = sorted(
        (one.first, one.last + 1)
        for one in lost
        if (one.topic, one.partition) == key[:2] and mark_of(Log.parse(one.log)) in {mark, ""}
    )
    reach = max([end, *(piece.end for piece in pieces)])
    for first, after in known:  # a file's range may span such a gap
        if at <= first < reach:
            yield Hole(topic, partition, first, after, is_lost=True)
    for number, piece in enumerate([*pieces, Piece(end, end)]):
        if piece.begin > at:
            before, behind = pieces[:number], pieces[number:]
            for first, after in _without(known, at, piece.begin):
                yield Hole(
                    topic,
                    partition,
                    first,
                    after,
                    below=0 if behind else end,
                    oldest_before=min((one.oldest for one in before), default=0),
                    newest_after=max((one.newest for one in behind), default=1 << 62),
                )
        at = max(at, piece.end)


def _without(known: Iterable[Span], at: int, end: int) -> Iterator[Span]:
    """Yield what is left of a hole without what is known to be lost."""
    for first, after in [*known, (end, end)]:
        if at < min(first, end):
            yield at, min(first, end)
        at = max(at, min(after, end))


def _doubled(origins: Iterable[FileRange], begun: Iterable[series.Series]) -> list[Problem]:
    """Return the offsets that are in two files."""
    follows = {(one.topic, one.partition): mark_of(Log.parse(one.log)) for one in begun if one.follows}
    of_key: dict[Key, list[FileRange]] = {}
    for origin in origins:
        place = origin.topic, origin.partition
        mark = mark_of(Log.parse(origin.log)) or follows.get(place, "")
        of_key.setdefault((*place, mark), []).append(origin)
    problems = []
    for (topic, partition, _), some in of_key.items():
        last, firsts = -1, set[int]()
        for origin in sorted(some, key=lambda one: (one.begin, one.first)):
            if origin.first < last != origin.end or origin.first in firsts:
                problems.append(
                    Problem("twice", f"{topic}[{partition}]", f"offsets from {origin.first} on are in two files")
                )
            last = max(last, origin.end)
            firsts.add(origin.first)
    return problems
