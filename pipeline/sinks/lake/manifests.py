"""What a lake lists: for each data file one entry, and for each directory that `lake maintain` has been to, one manifest.

- `_manifests/<directory>/<name of the file>.json`: an entry. The worker that wrote the file writes it, once, before the
  offset moves, and it is never changed. So it costs the same for the first file of a directory and for the thousandth, and
  nobody waits for anybody.
- `<directory>/_manifest.json`: the manifest. `lake maintain` alone changes it, by a conditional put: it moves entries there,
  and puts a large file in the place of small ones, in one step for readers. Earlier versions listed all files there.
- `_manifests/<directory>/gaps-<digest>.json`: gaps known of the table, written once for each directory and state of them.

A directory's files are those of its manifest and its entries, without those whose rows are in a large file: one that
maintenance has made names the topic, partition, log and offsets of all that it was made of. What has the same first offset,
and does not reach further, is in it. So entries that are left over, or that are written again by a worker that was away
for a long time, show no row twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

import msgspec

from pipeline.errors import FatalError, TransientError
from pipeline.sinks.lake.objects import CHANGE_ATTEMPTS, Objects
from pipeline.sinks.lake.paths import mark_of, origin_of
from pipeline.transport.logs import Log

NAME = "_manifest.json"
DIRECTORY = "_manifests"
GAPS = "gaps-"
SUFFIX = ".parquet"
Told = set[str]
"""Paths of what a writer knows to be there."""
MOST_TOLD = 10_000
Broken = Callable[[str, str], None]
"""Takes the path of an object that cannot be read, and why."""


class FileRange(msgspec.Struct, frozen=True):
    """Which records of the sink topic a file holds rows of."""

    topic: str
    partition: int
    first: int
    """Offset of the first row."""
    begin: int
    """The range of offsets that the file and its siblings of the same flush hold all rows of: from here on ..."""
    end: int
    """... and before this one."""
    log: str = ""
    """The log that the offsets are of; '' where an earlier version has written it, or where the broker gives no IDs."""


class File(msgspec.Struct, frozen=True):
    """A file of the hour."""

    path: str
    rows: int
    bytes: int
    sha256: str
    table: str
    oldest: int
    """Time of its oldest change, in microseconds since the epoch."""
    newest: int
    first_sequence: str
    last_sequence: str
    origins: list[FileRange]


class ManifestGap(msgspec.Struct, frozen=True, omit_defaults=True):
    """Changes that are known to be lost, as the gaps topic has them: of the table, or of a topic, then the table is ''."""

    table: str
    shard: str
    after: str | None
    before: str | None
    cause: str
    noticed: float
    """When, in seconds since the epoch."""
    topic: str = ""
    """With the cause `retention`: the topic whose records are gone, and which."""
    partition: int = -1
    first: int = -1
    last: int = -1
    log: str = ""


class Manifest(msgspec.Struct):
    """The files of one directory of the lake."""

    directory: str
    rows: int = 0
    files: list[File] = msgspec.field(default_factory=list)
    gaps: list[ManifestGap] = msgspec.field(default_factory=list)


class RowsBegin(NamedTuple):
    """Where the rows of a file begin: a record is in one directory, and no other file there begins with it."""

    topic: str
    partition: int
    mark: str
    """Of the log, as in names of files."""
    first: int


@dataclass
class Content:
    """What is known of one directory."""

    directory: str
    manifest: Manifest
    entries: dict[str, File] = field(default_factory=dict)
    """By their paths; those that say more than the manifest."""
    spent: set[str] = field(default_factory=set)
    """Paths of entries that say nothing more: their files are in the manifest, or in a larger file there."""
    gaps: set[ManifestGap] = field(default_factory=set)

    @property
    def files(self) -> list[File]:
        """The files whose rows make up the directory, by path."""
        return sorted([*_visible(self.manifest).values(), *self.entries.values()], key=attrgetter("path"))

    @property
    def listed(self) -> Manifest:
        """All of it, as one manifest."""
        files, gaps = self.files, {*self.manifest.gaps, *self.gaps}
        return Manifest(self.directory, sum(file.rows for file in files), files, sorted(gaps, key=_gap_order))


# -- writing ----------------------------------------------------------------------------------------------------------


def manifest_path(directory: str) -> str:
    """Return the path of a directory's manifest."""
    return f"{directory}/{NAME}"


def entry_of(path: str) -> str:
    """Return the path of a file's entry."""
    return f"{DIRECTORY}/{path.removesuffix(SUFFIX)}.json"


def is_manifest(path: str) -> bool:
    """Say whether an object is a manifest."""
    return path.endswith(f"/{NAME}")


def add(objects: Objects, file: File, gaps: Iterable[ManifestGap] = (), told: Told | None = None) -> None:
    """List a file that is there: one PUT, and one more where the gaps of its table are not told in its directory yet."""
    objects.create(entry_of(file.path), msgspec.json.encode(file))
    known = sorted(gaps, key=_gap_order)
    if not known:
        return
    content = msgspec.json.encode(known)
    directory, digest = file.path.rpartition("/")[0], hashlib.sha256(content).hexdigest()[:32]
    path = f"{DIRECTORY}/{directory}/{GAPS}{digest}.json"
    if told is not None and path in told:
        return
    objects.create(path, content)
    if told is not None:
        if len(told) >= MOST_TOLD:  # directories of hours that are over
            told.clear()
        told.add(path)


def exchange(objects: Objects, directory: str, *, added: Sequence[File], removed: Iterable[str] = ()) -> bool:
    """Put files into a manifest and take others out of it, in one step for its readers.

    False, and nothing is done, where somebody else has put rows of an added file into another one.
    """
    gone, done = set(removed), True

    def change(old: bytes | None) -> bytes | None:
        nonlocal done
        manifest = Manifest(directory) if old is None else decode_manifest(old)
        files = {file.path: file for file in manifest.files if file.path not in gone}
        new = [file for file in added if file.path not in files or not _names_logs(files[file.path])]
        merged = merged_rows(files.values())
        done = not any(rows in merged for file in new if file.path not in files for rows in rows_of(file))
        if not done:
            return None
        files |= {file.path: file for file in new}
        changed = Manifest(
            directory,
            sum(file.rows for file in files.values()),
            sorted(files.values(), key=attrgetter("path")),
            manifest.gaps,
        )
        content = msgspec.json.encode(changed)
        return None if content == old else content

    objects.change(manifest_path(directory), change)
    return done


# -- reading ----------------------------------------------------------------------------------------------------------


def decode_manifest(content: bytes) -> Manifest:
    """Read a manifest. Where a worker of an earlier version has left the logs out of it, the names of files have them."""
    found = msgspec.json.decode(content, type=Manifest)
    found.files = [file if _names_logs(file) else _named(file) for file in found.files]
    return found


def read_manifests(objects: Objects, prefix: str = "", *, broken: Broken | None = None) -> list[Manifest]:
    """Return what is listed below a prefix, by directory. Without `broken`, what cannot be read is a FatalError."""
    paths = objects.paths(prefix)
    if prefix:
        paths += objects.paths(f"{DIRECTORY}/{prefix}")
    return [content.listed for content in contents(objects, by_directory(paths), broken=broken)]


@dataclass
class Names:
    """The objects that list the files of a directory, by their paths."""

    manifest: bool = False
    entries: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)


def by_directory(paths: Iterable[str]) -> dict[str, Names]:
    """Return what lists files among some objects, by the directory of these."""
    found: dict[str, Names] = {}
    for path in paths:
        directory, _, name = path.rpartition("/")
        if name == NAME:
            found.setdefault(directory, Names()).manifest = True
        elif path.startswith(f"{DIRECTORY}/") and name.endswith(".json"):
            names = found.setdefault(directory.removeprefix(f"{DIRECTORY}/"), Names())
            (names.gaps if name.startswith(GAPS) else names.entries).append(path)
    return found


def contents(objects: Objects, directories: Mapping[str, Names], *, broken: Broken | None = None) -> Iterator[Content]:
    """Yield what directories list, each as it was at one moment. Raises HeadwaterError.

    The manifest is read before the entries. If one of them is gone then, it was moved to the manifest meanwhile: the
    directory is listed and read once more.
    """
    left = dict(directories)
    for _ in range(CHANGE_ATTEMPTS):
        manifests = objects.find_all(manifest_path(directory) for directory, names in left.items() if names.manifest)
        some = {
            directory: _begin(directory, names, manifests.get(manifest_path(directory)), broken)
            for directory, names in left.items()
        }
        wanted = [
            path
            for directory, names in left.items()
            for path in (*(entry for entry in names.entries if entry not in some[directory].spent), *names.gaps)
        ]
        found = objects.find_all(wanted)
        again: list[str] = []
        for directory, content in some.items():
            if any(found.get(path, b"") is None for path in left[directory].entries):
                again.append(directory)
            else:
                _fill(content, left[directory], found, broken)
                yield content
        if not again:
            return
        left = {
            directory: by_directory(
                path
                for path in objects.paths(f"{DIRECTORY}/{directory}")
                if path.rpartition("/")[0] == f"{DIRECTORY}/{directory}"
            ).get(directory, Names())
            for directory in again
        }
        for names in left.values():
            names.manifest = True
    raise TransientError(f"the lake {objects.url}: others change {', '.join(left)} all the time")


def _begin(directory: str, names: Names, manifest: bytes | None, broken: Broken | None) -> Content:
    """Return a directory as far as its manifest and the names of its entries tell."""
    content = Content(directory, Manifest(directory))
    if manifest is not None:
        try:
            content.manifest = decode_manifest(manifest)
        except msgspec.MsgspecError as error:
            _tell(manifest_path(directory), error, broken)
    known = {file.path for file in content.manifest.files if _names_logs(file)}
    content.spent.update(path for path in names.entries if file_of(path) in known)
    return content


def _fill(content: Content, names: Names, found: Mapping[str, bytes | None], broken: Broken | None) -> None:
    merged, inside = merged_rows(content.manifest.files), {file.path: file for file in content.manifest.files}
    for path in (*names.entries, *names.gaps):
        if path in content.spent or (stored := found.get(path)) is None:
            continue
        try:
            if path in names.gaps:
                content.gaps.update(msgspec.json.decode(stored, type=list[ManifestGap]))
                continue
            file = msgspec.json.decode(stored, type=File)
        except msgspec.MsgspecError as error:
            _tell(path, error, broken)
            continue
        if _is_in(file, merged):
            content.spent.add(path)
        elif file.path in inside:  # which does not name the log
            content.manifest.files[content.manifest.files.index(inside[file.path])] = file
            content.spent.add(path)
        else:
            content.entries[path] = file


def _tell(path: str, error: Exception, broken: Broken | None) -> None:
    if broken is None:
        raise FatalError(f"{path} cannot be read: {error}", hint="headwater lake verify") from error
    broken(path, str(error))


def file_of(entry: str) -> str:
    """Return the path of the file that an entry lists, by the entry's path."""
    return entry.removeprefix(f"{DIRECTORY}/").removesuffix(".json") + SUFFIX


def is_merged(file: File) -> bool:
    """Say whether maintenance has made a file of others."""
    return origin_of(file.path) is None


def merged_rows(files: Iterable[File]) -> dict[RowsBegin, int]:
    """Return which files' rows are in large ones, and up to which offset."""
    found: dict[RowsBegin, int] = {}
    for file in filter(is_merged, files):
        for rows, origin in zip(rows_of(file), file.origins, strict=True):
            found[rows] = max(origin.end, found.get(rows, 0))
    return found


def rows_of(file: File) -> list[RowsBegin]:
    """Return what tells the rows of a file."""
    return [
        RowsBegin(origin.topic, origin.partition, mark_of(Log.parse(origin.log)), origin.first)
        for origin in file.origins
    ]


def _is_in(file: File, merged: Mapping[RowsBegin, int]) -> bool:
    """Say whether all rows of a file are in large ones. One that reaches further counts: it was written once more."""
    found = list(zip(rows_of(file), file.origins, strict=True))
    return bool(found) and all(merged.get(rows, -1) >= origin.end for rows, origin in found)


def _visible(manifest: Manifest) -> dict[str, File]:
    merged = merged_rows(manifest.files)
    return {file.path: file for file in manifest.files if is_merged(file) or not _is_in(file, merged)}


def _names_logs(file: File) -> bool:
    return all(origin.log for origin in file.origins)


def _named(file: File) -> File:
    """Return a file with the log that its name says."""
    named = origin_of(file.path)
    if named is None or not named.mark:
        return file
    log = str(Log(topic_id=named.mark))
    origins = [origin if origin.log else msgspec.structs.replace(origin, log=log) for origin in file.origins]
    return msgspec.structs.replace(file, origins=origins)


def _gap_order(gap: ManifestGap) -> tuple[float, str, str, str, int, int]:
    return gap.noticed, gap.table, gap.shard, gap.topic, gap.partition, gap.first
