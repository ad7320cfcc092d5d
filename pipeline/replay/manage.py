"""Begins, finds and resumes replays: what is on the topic <p>.replays, and which offsets a time means."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from confluent_kafka import TopicPartition

from pipeline.errors import FatalError, UsageError
from pipeline.replay.flows import all_of
from pipeline.replay.plan import Replay, decode, new_id, of_suffix, place, placed
from pipeline.replay.range import of_raw, require_whole
from pipeline.replay.run import id_of
from pipeline.replay.source import LakeSource, RawSource, ReplaySource
from pipeline.replay.transaction import on_cluster, reader
from pipeline.settings.root import Settings
from pipeline.sinks.lake.paths import origin_of
from pipeline.topics.admin import admin, ensure, names_in
from pipeline.topics.names import Topics
from pipeline.topics.read import latest
from pipeline.transport.partition import partition_of

REPLAYS_TIMEOUT_S = 30.0
SAMPLE = 1_000
"""Records that a dry run looks at, to tell bytes and time."""


def replays(settings: Settings) -> list[Replay]:
    """Return all replays, oldest first."""
    return sorted(map(decode, latest(all_of(settings, Topics(settings).replays)).values()), key=lambda one: one.at)


def replay_of(settings: Settings, replay_id: str) -> Replay:
    """Return one replay; raise UsageError when there is none of this ID."""
    for replay in replays(settings):
        if replay.id == replay_id:
            return replay
    raise UsageError(f"there is no replay {replay_id}", hint="headwater replay list")


def require_free(settings: Settings, suffix: str) -> None:
    """Raise UsageError when there are topics already whose names end with the suffix: of another replay, or live ones."""
    there = names_in(admin(settings.kafka.conf))
    if taken := of_suffix(there, settings.prefix, suffix):
        raise UsageError(
            f"--into {suffix}: {taken[0]} is there already, another replay has written there or it is a live topic",
            hint="headwater replay list",
        )


def positions_of(settings: Settings, replay: Replay, group: str) -> dict[str, int]:
    """Return how far the ranges of a replay were read, by its group; those that were not begun are left out."""
    if replay.positions:
        return dict(replay.positions)
    with on_cluster():
        consumer = reader(settings, group)
        try:
            asked = [TopicPartition(*placed(name)) for name in replay.ranges]
            found = consumer.committed(asked, REPLAYS_TIMEOUT_S) if asked else []
        finally:
            consumer.close()
    return {place(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}


def plan_replay(settings: Settings, wanted: Replay, now: float, *, partial: bool = False) -> Replay:
    """Return the replay with its ID and its ranges of offsets; nothing is written.

    Raises FatalError when some of what is asked for is not there, unless `partial`.
    """
    begun = msgspec.structs.replace(wanted, at=now, id=wanted.id or new_id(now))
    if begun.source == "lake":
        return msgspec.structs.replace(begun, ranges=_lake_ranges(settings, begun, partial=partial))
    topic = Topics(settings).raw
    partitions = range(settings.partitions)
    if begun.key:
        partitions = range(p := partition_of(begun.key.encode(), settings.partitions), p + 1)
    found = of_raw(settings, begun, topic, partitions)
    if not partial:
        require_whole(found)
    return found


def files_of(settings: Settings, replay: Replay, *, partial: bool = True) -> dict[str, list[str]]:
    """Return the files of the lake that hold changes of the replay's time, by range, in the order of their records.

    Raises FatalError when there is no lake, and, unless `partial`, when it lacks some of them.
    """
    from pipeline.sinks.lake import configured as lake_settings  # noqa: PLC0415 - an extra
    from pipeline.sinks.lake.manifests import read_manifests  # noqa: PLC0415
    from pipeline.sinks.lake.objects import Objects  # noqa: PLC0415
    from pipeline.sinks.lake.verify import holes  # noqa: PLC0415

    if settings.lake.url is None or settings.lake.layout != "envelope" or settings.lake.table != "parquet":
        raise UsageError(
            '--source lake: needs lake.url, with layout = "envelope": other layouts do not hold images whole'
        )
    objects = Objects(settings.lake.url, make=False)
    if not partial:
        lake = lake_settings.choose(settings)
        carried, lost = lake_settings.carried(settings, lake), lake_settings.lost(settings)
    listed = [file for manifest in read_manifests(objects) for file in manifest.files]
    if not listed:
        raise FatalError(f"there is no file in the lake {settings.lake.url}", hint="is lake.url right?")
    begin, end = (replay.begin or 0) * 1_000_000, replay.end * 1_000_000
    if not partial:
        missing = [
            str(hole)
            for hole in holes(objects, listed, carried, lost)
            if hole.newest_after >= begin and hole.oldest_before < end
        ]
        there = set(objects.paths())
        missing += [f"{file.path} is not there" for file in listed if file.path not in there and _is_in(file, replay)]
        if missing:
            raise FatalError(
                f"the lake {settings.lake.url} does not hold the whole range: {'; '.join(missing)}",
                hint="headwater lake verify; or --partial for what is there",
            )
    found: dict[str, list[tuple[int, int, str]]] = {}
    for file in listed:
        if _is_in(file, replay):
            if (named := origin_of(file.path)) is None:
                raise UsageError(
                    f"--source lake: {file.path} was compacted: its rows are of several partitions",
                    hint="replay by day with --from and --to, before files are compacted",
                )
            name = place(f"{named.topic}+{named.mark}" if named.mark else named.topic, named.partition)
            found.setdefault(name, []).append((named.offset, file.oldest, file.path))
    # What an earlier version has written, or what was written before a topic was recreated, comes before the rest.
    ordered = sorted(found, key=lambda name: min(oldest for _, oldest, _ in found[name]))
    return {name: [path for *_, path in sorted(found[name])] for name in ordered}


def _is_in(file: Any, replay: Replay) -> bool:
    begin, end = (replay.begin or 0) * 1_000_000, replay.end * 1_000_000
    return bool(file.oldest < end and file.newest >= begin and (not replay.tables or file.table in replay.tables))


def _lake_ranges(settings: Settings, replay: Replay, *, partial: bool) -> dict[str, list[int]]:
    ranges = {}
    for name, paths in files_of(settings, replay, partial=partial).items():
        first, last = origin_of(paths[0]), origin_of(paths[-1])
        if first is not None and last is not None:
            ranges[name] = [first.offset, last.offset + 1]
    return ranges


def source_of(settings: Settings, replay: Replay, positions: Mapping[str, int]) -> ReplaySource:
    """Return what reads the rest of a replay's ranges."""
    if replay.source == "raw":
        return RawSource(settings.kafka.conf, replay, positions, time.monotonic)
    from pipeline.sinks.lake.objects import Objects  # noqa: PLC0415 - an extra

    files = {
        name: paths
        for name, paths in files_of(settings, replay).items()
        if positions.get(name, 0) < replay.ranges.get(name, [0, 0])[1]
    }
    return LakeSource(Objects(settings.lake.url or "", make=False).read, files, replay, positions)


def seen_before(settings: Settings, replay: Replay, positions: Mapping[str, int]) -> set[bytes]:
    """Return the event IDs that a replay with `dedup` has met before it was stopped."""
    if not (replay.dedup and positions):
        return set()
    ranges = {name: [begin, positions.get(name, begin)] for name, (begin, _) in replay.ranges.items()}
    source, seen = source_of(settings, msgspec.structs.replace(replay, ranges=ranges), {}), set[bytes]()
    try:
        while not source.done:
            for batch in source.batches():
                seen.update(found for record in batch.records if (found := id_of(record.value)))
    finally:
        source.close()
    return seen


def make_topics(settings: Settings) -> None:
    """Make the topic of replays where it is missing."""
    topics = Topics(settings)
    wanted = [topic for topic in topics.all() if topic.name == topics.replays]
    ensure(admin(settings.kafka.conf), wanted, settings.kafka.replication_factor)


def sample(settings: Settings, replay: Replay) -> Sequence[tuple[bytes | None, bytes, float]]:
    """Return some of the first records of a replay: key, value, time."""
    source = source_of(settings, replay, {})
    found: list[tuple[bytes | None, bytes, float]] = []
    try:
        while len(found) < SAMPLE and not source.done:
            for batch in source.batches():
                found += [(record.key, record.value, record.at) for record in batch.records]
    finally:
        source.close()
    return found[:SAMPLE]


class LiveLag:
    """Tells how many records of raw the live workers have still to read; 0 when none have read any."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = reader(settings, settings.prefix)
        topic = Topics(settings).raw
        self._partitions = [TopicPartition(topic, partition) for partition in range(settings.partitions)]

    def __call__(self) -> int:
        """Ask the broker."""
        with on_cluster():
            return sum(
                max(0, self._consumer.get_watermark_offsets(tp, REPLAYS_TIMEOUT_S)[1] - tp.offset)
                for tp in self._consumer.committed(self._partitions, REPLAYS_TIMEOUT_S)
                if tp.offset >= 0
            )


def as_data(replay: Replay) -> dict[str, Any]:
    """Return a replay as plain data."""
    found: dict[str, Any] = msgspec.to_builtins(replay)
    return {**found, "total": replay.total, "into": replay.suffix or "the live topics"}
