"""Makes few large files of many small ones, directory by directory.

Only files whose offsets are committed are touched: what may still be tried again keeps its name. The new file is written
first, then the manifest is changed from the old ones to it in one step, then the old ones are deleted. So readers by
manifest see each row once at any time; readers by listing see rows twice for a moment.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from pipeline.sinks import manifests
from pipeline.sinks.lake_verify import read_manifests
from pipeline.sinks.layouts.columns import united
from pipeline.sinks.manifests import File, Manifest, Origin
from pipeline.sinks.objects import Objects
from pipeline.sinks.paths import mark_of, origin_of
from pipeline.transport.logs import UNKNOWN, Log

Committed = Callable[[str, int], int]
"""Returns the offset that the lake's group has committed in a partition of a topic, of its log as it is now."""
LogOf = Callable[[str], Log]
"""Returns the log of a topic as it is now."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was made of a directory's files."""

    directory: str
    before: int
    after: int
    rows: int

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
) -> Iterator[Compacted]:
    """Compact the directories below a prefix; files of `size` bytes or more stay, and those with changes after a time."""

    def is_done(origin: Origin) -> bool:
        """Say whether nobody tries to write these rows any more; of another cluster nobody here can tell."""
        its, now = Log.parse(origin.log), log_of(origin.topic)
        if its.may_be(now):
            return origin.end <= committed(origin.topic, origin.partition)
        return its.cluster == now.cluster

    for manifest in read_manifests(objects, prefix):
        if not dry_run:
            _sweep(objects, manifest, is_done)
        small = [
            file
            for file in manifest.files
            if file.bytes < size and file.newest < older_than_us and all(map(is_done, file.origins))
        ]
        after = 0
        for group in _groups(small, size):
            if len(group) > 1:
                after += 1
                if not dry_run:
                    _merge(objects, manifest.directory, group)
            else:
                after += len(group)
        if after < len(small):
            yield Compacted(manifest.directory, len(small), after, sum(file.rows for file in small))


def _sweep(objects: Objects, manifest: Manifest, is_done: Callable[[Origin], bool]) -> None:
    """Delete what an earlier run has merged and did not come to delete."""
    listed = {file.path for file in manifest.files}
    origins = {
        (origin.topic, origin.partition, origin.first, mark): origin
        for file in manifest.files
        for origin in file.origins
        for mark in {mark_of(Log.parse(origin.log)), ""}
    }
    for path in objects.paths(manifest.directory):
        origin = origin_of(path)
        if path in listed or origin is None or path.rpartition("/")[0] != manifest.directory:
            continue
        merged = origins.get((origin.topic, origin.partition, origin.offset, origin.mark))
        if merged is not None and is_done(merged):
            objects.delete(path)


def _groups(files: Sequence[File], size: int) -> Iterator[list[File]]:
    """Yield files that make one of about the size, in the order of their records."""
    group: list[File] = []
    for file in sorted(files, key=lambda one: [(o.topic, o.partition, o.log, o.first) for o in one.origins]):
        if group and sum(one.bytes for one in group) + file.bytes > size:
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def _merge(objects: Objects, directory: str, group: Sequence[File]) -> None:
    tables = [pq.read_table(io.BytesIO(objects.read(file.path))).replace_schema_metadata(None) for file in group]
    table = united(tables)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    content = out.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    origins: list[Origin] = [origin for file in group for origin in file.origins]
    new = File(
        f"{directory}/compacted-{digest[:32]}.parquet",
        table.num_rows,
        len(content),
        digest,
        group[0].table,
        min(file.oldest for file in group),
        max(file.newest for file in group),
        group[0].first_sequence,
        group[-1].last_sequence,
        origins,
    )
    objects.create(new.path, content)
    manifests.exchange(objects, directory, added=[new], removed=[file.path for file in group])
    for file in group:
        objects.delete(file.path)
