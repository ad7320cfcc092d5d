"""Begins, finds and resumes replays: what stands on the topic <p>.replays, and which offsets a time means."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from confluent_kafka import Consumer, TopicPartition

from pipeline.errors import UsageError
from pipeline.replay.plan import Replay, decode, new_id, of_suffix, place, placed
from pipeline.replay.run import all_of, id_of, on_cluster
from pipeline.replay.source import LakeSource, RawSource, Source
from pipeline.settings import Settings
from pipeline.sinks.paths import origin_of
from pipeline.status import latest
from pipeline.topics import Topics, admin, ensure
from pipeline.transport.producer import partition_of

TIMEOUT = 30.0
SAMPLE = 1_000
"""Records that a dry run looks at, to tell bytes and time."""


def replays(settings: Settings) -> list[Replay]:
    """Return all replays, oldest first."""
    return sorted(map(decode, latest(all_of(settings, Topics(settings).replays)).values()), key=lambda one: one.at)


def replay_of(settings: Settings, replay_id: str) -> Replay:
    """Return one replay; raise UsageError when there is none of this ID."""
    for one in replays(settings):
        if one.id == replay_id:
            return one
    raise UsageError(f"there is no replay {replay_id}", hint="headwater replay list")


def require_free(settings: Settings, suffix: str) -> None:
    """Raise UsageError when there are topics already whose names end with the suffix: of another replay, or live ones."""
    there = admin(settings.kafka.conf).list_topics(timeout=TIMEOUT).topics
    if taken := of_suffix(there, settings.prefix, suffix):
        raise UsageError(
            f"--into {suffix}: {taken[0]} is there already, another replay has written there or it is a live topic",
            hint="headwater replay list",
        )


def positions_of(settings: Settings, replay: Replay, group: str) -> dict[str, int]:
    """Return how far the ranges of a replay were read, by its group; those that were not begun are left out."""
    with on_cluster():
        consumer = Consumer({**settings.kafka.conf, "group.id": group, "enable.auto.commit": False})
        try:
            asked = [TopicPartition(*placed(name)) for name in replay.ranges]
            found = consumer.committed(asked, TIMEOUT) if asked else []
        finally:
            consumer.close()
    return {place(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}


def plan(settings: Settings, wanted: Replay, now: float) -> Replay:
    """Return the replay with its ID and its ranges of offsets; nothing is written."""
    begun = msgspec.structs.replace(wanted, at=now, id=wanted.id or new_id(now))
    if begun.source == "lake":
        return msgspec.structs.replace(begun, ranges=_lake_ranges(settings, begun))
    topic = Topics(settings).raw
    partitions = range(settings.partitions)
    if begun.key:
        partitions = range(p := partition_of(begun.key.encode(), settings.partitions), p + 1)
    with on_cluster():
        consumer = Consumer({**settings.kafka.conf, "group.id": topic, "isolation.level": "read_committed"})
        try:
            ranges = {}
            for partition in partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), TIMEOUT)
                begin = _offset_at(consumer, topic, partition, begun.begin, high) if begun.begin is not None else low
                end = _offset_at(consumer, topic, partition, begun.end, high)
                if max(low, begin) < end:
                    ranges[place(topic, partition)] = [max(low, begin), end]
        finally:
            consumer.close()
    return msgspec.structs.replace(begun, ranges=ranges)


def _offset_at(consumer: Consumer, topic: str, partition: int, at: float, high: int) -> int:
    (found,) = consumer.offsets_for_times([TopicPartition(topic, partition, int(at * 1000))], TIMEOUT)
    return min(high, found.offset) if found.offset >= 0 else high


def files_of(settings: Settings, replay: Replay) -> dict[str, list[str]]:
    """Return the files of the lake that hold changes of the replay's time, by range, in the order of their records."""
    from pipeline.sinks.lake_verify import read_manifests  # noqa: PLC0415 - an extra
    from pipeline.sinks.objects import Objects  # noqa: PLC0415

    if settings.lake.url is None or settings.lake.layout != "envelope" or settings.lake.table != "parquet":
        raise UsageError(
            '--source lake: needs lake.url, with layout = "envelope": other layouts do not hold images whole'
        )
    begin, end = (replay.begin or 0) * 1_000_000, replay.end * 1_000_000
    found: dict[str, list[tuple[int, str]]] = {}
    for manifest in read_manifests(Objects(settings.lake.url)):
        for file in manifest.files:
            if file.oldest < end and file.newest >= begin and (not replay.tables or file.table in replay.tables):
                if origin_of(file.path) is None:
                    raise UsageError(
                        f"--source lake: {file.path} was compacted: its rows are of several partitions",
                        hint="replay by day with --from and --to, before files are compacted",
                    )
                origin = file.origins[0]
                found.setdefault(place(origin.topic, origin.partition), []).append((origin.first, file.path))
    return {name: [path for _, path in sorted(files)] for name, files in found.items()}


def _lake_ranges(settings: Settings, replay: Replay) -> dict[str, list[int]]:
    ranges = {}
    for name, paths in files_of(settings, replay).items():
        first, last = origin_of(paths[0]), origin_of(paths[-1])
        if first is not None and last is not None:
            ranges[name] = [first.offset, last.offset + 1]
    return ranges


def source_of(settings: Settings, replay: Replay, positions: Mapping[str, int]) -> Source:
    """Return what reads the rest of a replay's ranges."""
    if replay.source == "raw":
        return RawSource(settings.kafka.conf, replay, positions, time.monotonic)
    from pipeline.sinks.objects import Objects  # noqa: PLC0415 - an extra

    files = {
        name: paths
        for name, paths in files_of(settings, replay).items()
        if positions.get(name, 0) < replay.ranges.get(name, [0, 0])[1]
    }
    return LakeSource(Objects(settings.lake.url or "").read, files, replay, positions)


def seen_before(settings: Settings, replay: Replay, positions: Mapping[str, int]) -> set[bytes]:
    """Return the event IDs that a replay with `dedup` has met before it was stopped."""
    if not (replay.dedup and positions):
        return set()
    ranges = {name: [begin, positions.get(name, begin)] for name, (begin, _) in replay.ranges.items()}
    source, seen = source_of(settings, msgspec.structs.replace(replay, ranges=ranges), {}), set[bytes]()
    try:
        while not source.done:
            for lot in source.lots():
                seen.update(found for one in lot.records if (found := id_of(one.value)))
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
            for lot in source.lots():
                found += [(one.key, one.value, one.at) for one in lot.records]
    finally:
        source.close()
    return found[:SAMPLE]


class LiveLag:
    """Tells how many records of raw the live workers have still to read; 0 when none have read any."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = Consumer(
            {**settings.kafka.conf, "group.id": settings.prefix, "isolation.level": "read_committed"}
        )
        topic = Topics(settings).raw
        self._partitions = [TopicPartition(topic, partition) for partition in range(settings.partitions)]

    def __call__(self) -> int:
        """Ask the broker."""
        with on_cluster():
            return sum(
                max(0, self._consumer.get_watermark_offsets(tp, TIMEOUT)[1] - tp.offset)
                for tp in self._consumer.committed(self._partitions, TIMEOUT)
                if tp.offset >= 0
            )


def as_data(replay: Replay) -> dict[str, Any]:
    """Return a replay as plain data."""
    found: dict[str, Any] = msgspec.to_builtins(replay)
    return {**found, "total": replay.total, "into": replay.suffix or "the live topics"}
