"""Manifests: beside the files of a table and an hour, one JSON object that lists them, with what a reader can check.

A manifest is changed by a conditional put, so that workers who write files of the same hour do not lose each other's
entries; an entry is added when its file is there, and before the offset moves. So whoever reads by manifests alone sees
whole files, each row once, also while small files are being compacted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from pipeline.sinks.objects import Objects
from pipeline.sinks.paths import origin_of
from pipeline.transport.logs import Log

NAME = "_manifest.json"


class Origin(msgspec.Struct, frozen=True):
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
    """The log that the offsets are of; '' where a version before has written it, or where the broker gives no IDs."""


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
    origins: list[Origin]


class Gap(msgspec.Struct, frozen=True, omit_defaults=True):
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
    gaps: list[Gap] = msgspec.field(default_factory=list)


def path_of(directory: str) -> str:
    """Return the path of a directory's manifest."""
    return f"{directory}/{NAME}"


def is_manifest(path: str) -> bool:
    """Say whether an object is a manifest."""
    return path.endswith(f"/{NAME}")


def decode(content: bytes) -> Manifest:
    """Read a manifest. Where a worker of a version before has left the logs out of it, the names of files have them."""
    found = msgspec.json.decode(content, type=Manifest)
    found.files = [file if _names_logs(file) else _named(file) for file in found.files]
    return found


def add(objects: Objects, directory: str, files: Sequence[File], gaps: Iterable[Gap] = ()) -> None:
    """Add files to a directory's manifest; those that it has already stay as they are."""
    exchange(objects, directory, added=files, gaps=gaps)


def exchange(
    objects: Objects,
    directory: str,
    *,
    added: Sequence[File],
    removed: Iterable[str] = (),
    gaps: Iterable[Gap] = (),
) -> None:
    """Put files into a manifest and take others out of it, in one step for its readers."""
    gone = set(removed)

    def change(old: bytes | None) -> bytes | None:
        manifest = Manifest(directory) if old is None else decode(old)
        files = {file.path: file for file in manifest.files if file.path not in gone}
        for file in added:
            if file.path not in files or not _names_logs(files[file.path]):
                files[file.path] = file
        known = {_key(gap): gap for gap in [*manifest.gaps, *gaps]}
        new = Manifest(
            directory,
            sum(file.rows for file in files.values()),
            sorted(files.values(), key=lambda file: file.path),
            sorted(known.values(), key=lambda gap: gap.noticed),
        )
        content = msgspec.json.format(msgspec.json.encode(new), indent=1)
        return None if content == old else content

    objects.change(path_of(directory), change)


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


def _key(gap: Gap) -> tuple[str, str, float, str, int, int]:
    return gap.table, gap.shard, gap.noticed, gap.topic, gap.partition, gap.first
