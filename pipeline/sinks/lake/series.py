"""Series: the offsets of one partition of one log that a lake holds, without a hole. Where each begins is recorded once.

Beside the tables' directories is `_series/`, whose objects are written once and never changed:

- `<topic>+<mark>+<partition>.json`: where the series begins. It is written before the first file.
- `<topic>+<mark>+<partition>+<begin>-<end>.json`: offsets that no file holds, since all their records were refused.
- `path.txt`: the template of the directories that the lake has begun with, where none is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from pipeline.sinks.lake import paths
from pipeline.sinks.lake.objects import Objects

DIRECTORY = "_series"
PATH = f"{DIRECTORY}/path.txt"


class Series(msgspec.Struct, frozen=True):
    """Where a series begins."""

    topic: str
    partition: int
    log: str
    """'' where the broker gives no IDs."""
    begin: int
    """The first offset that the lake is to hold."""
    follows: bool
    """Whether it continues what an earlier version has written of the same log, without naming it."""
    at: float
    """When it was begun, in seconds since the epoch."""
    former_log: str = ""
    """The log that the group's offset was of, where that was another one; '' where Kafka has forgotten it."""
    former_end: int = -1
    """That offset: what was carried of the former log."""


class Rowless(msgspec.Struct, frozen=True):
    """Offsets whose records were all refused: they are dead letters, and no file has a row of them."""

    topic: str
    partition: int
    log: str
    begin: int
    end: int


def begin_series(objects: Objects, mark: str, series: Series) -> None:
    """Write down where a series begins, if that is not known yet."""
    objects.create(f"{_path(series.topic, mark, series.partition)}.json", msgspec.json.encode(series))


def leave_out(objects: Objects, mark: str, rowless: Rowless) -> None:
    """Write down offsets without rows."""
    place = _path(rowless.topic, mark, rowless.partition)
    objects.create(f"{place}+{rowless.begin:020d}-{rowless.end:020d}.json", msgspec.json.encode(rowless))


def series_path(objects: Objects, configured: str) -> str:
    """Return the template of a lake's directories: what is set, else what the lake has begun with, whoever asks first.

    An earlier version has not written it down: its files are below `table=`, and its series are there before them.
    """
    if configured:
        return configured
    if (found := objects.find(PATH)) is None:
        objects.create(PATH, _begun_with(objects).encode())
        found = objects.read(PATH)  # another worker may have been faster
    return found.decode()


def known_path(objects: Objects, configured: str) -> str:
    """Return the same, and write nothing down."""
    if configured:
        return configured
    found = objects.find(PATH)
    return _begun_with(objects) if found is None else found.decode()


def _begun_with(objects: Objects) -> str:
    """Return the template of a lake that has recorded none."""
    begun = any(directory == DIRECTORY or directory.startswith("table=") for directory in objects.directories())
    return paths.FORMER if begun else paths.DEFAULT


def read_series(objects: Objects) -> Iterator[Series | Rowless]:
    """Yield all that is known of series."""
    for path in objects.paths(DIRECTORY):
        if path == PATH:
            continue
        content = objects.read(path)
        if "-" in _after_partition(path):
            yield msgspec.json.decode(content, type=Rowless)
        else:
            yield msgspec.json.decode(content, type=Series)


def _path(topic: str, mark: str, partition: int) -> str:
    return f"{DIRECTORY}/{'+'.join(filter(None, (topic, mark, str(partition))))}"


def _after_partition(path: str) -> str:
    last = path.rpartition("+")[2].removesuffix(".json")
    return last if last.replace("-", "").isdecimal() else ""


def of_kind(found: Iterable[Series | Rowless]) -> tuple[list[Series], list[Rowless]]:
    """Return the beginnings, and the ranges without rows."""
    both = list(found)
    return [one for one in both if isinstance(one, Series)], [one for one in both if isinstance(one, Rowless)]
