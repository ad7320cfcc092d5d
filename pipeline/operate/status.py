"""`headwater status`: shards and positions, lag by agent, dead letters, gaps, workers; read from Kafka alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from pipeline.flows.versions import (
    flow_versions,
)
from pipeline.operate.dead_letters import dead_letter_states
from pipeline.operate.gaps import _gaps, _is_repaired, _known
from pipeline.replay.plan import decode as decode_replay
from pipeline.settings.root import Settings
from pipeline.settings.sinks import group_of
from pipeline.sources.shard_positions import KnownPositions
from pipeline.sources.snapshots.known import Snapshots
from pipeline.topics.admin import admin, look
from pipeline.topics.group import members_of
from pipeline.topics.names import Topics
from pipeline.topics.read import READ_TIMEOUT_S, each_record, latest, read_topic, reading

COUNTED = 10_000
"""Records read at most to tell a small lag exactly: the ends of transactions take offsets too."""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A shard and how far it was read."""

    table: str
    shard: str
    after: str | None
    finished: bool


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """A snapshot and how far it is."""

    table: str
    id: str
    state: str
    rows: int
    expected: int
    """Items of the table, about."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How many records an agent has still to read."""

    agent: str
    topic: str
    records: int
    exact: bool


@dataclass(frozen=True, slots=True)
class FlowsStatus:
    """Which version of the flows a worker runs."""

    worker: str
    version: int
    """0: the flows of its settings."""
    applied: int
    """The newest version."""
    stopped: dict[str, str]
    """Flows that are paused, and why."""
    refused: str
    """Why it has not taken a later version up."""


@dataclass(frozen=True, slots=True)
class ReplayStatus:
    """A replay, and how far it is."""

    id: str
    state: str
    into: str
    read: int
    records: int
    """Offsets in its range: records at most."""


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """A partition that is stuck, and why."""

    sink: str
    topic: str
    partition: int
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a deployment."""

    group: str
    workers: int
    flows: list[FlowsStatus]
    """What each worker runs."""
    shards: list[ShardStatus]
    snapshots: list[SnapshotStatus]
    lag: list[Lag]
    dead_letters: int
    """Those that are open: neither retried nor skipped."""
    gaps: int
    """Those that no snapshot has repaired since."""
    replays: list[ReplayStatus]
    sinks: list[SinkStatus]
    """What a lake, a mirror, a replica or Pub/Sub cannot do just now."""

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def status(settings: Settings) -> Status:
    """Read the state; raise FatalError when the cluster cannot be reached."""
    topics, client = Topics(settings), admin(settings.kafka.conf)
    there = {found.wanted.name: found.partitions for found in look(client, topics.all()) if found.partitions}
    members = members_of(client, settings.prefix)
    with reading(settings) as consumer:
        reads = [("deduplicate", topics.ingest), ("transform", topics.raw)]
        reads += [("lake", topic) for topic in topics.sinks_of(settings.lake).values()] if settings.lake.url else []
        known, snapshots = _known(consumer, topics.shards, there.get(topics.shards, 0))
        gaps = _gaps(consumer, topics.gaps, there.get(topics.gaps, 0))
        return Status(
            group=settings.prefix,
            workers=len(members),
            flows=_flows(consumer, topics.flows, there.get(topics.flows, 0), members),
            shards=_shards(known),
            snapshots=_snapshots(snapshots),
            lag=[
                *(_lag(consumer, agent, topic, there[topic]) for agent, topic in reads if topic in there),
                *_lags_of_others(settings, topics, there),
            ],
            dead_letters=_open_letters(consumer, topics, there),
            gaps=sum(not _is_repaired(gap, topics, known, snapshots) for gap in gaps),
            replays=_replays(consumer, topics.replays, there.get(topics.replays, 0)),
            sinks=_sinks(consumer, topics.sink_states, there.get(topics.sink_states, 0)),
        )


def _shards(known: KnownPositions) -> list[ShardStatus]:
    return [
        ShardStatus(place.table, shard_id, place.after, place.finished)
        for _, places in sorted(known.places.items())
        for shard_id, place in sorted(places.items())
    ]


def _snapshots(snapshots: Snapshots) -> list[SnapshotStatus]:
    found = sorted(snapshots.all.values(), key=lambda one: one.asked)
    return [SnapshotStatus(one.table, one.id, one.state, snapshots.rows(one), one.expected) for one in found]


def _flows(consumer: Consumer, topic: str, partitions: int, members: Iterable[str]) -> list[FlowsStatus]:
    found = flow_versions(consumer, topic, partitions)
    return [
        FlowsStatus(name, worker.version, found.applied.number, worker.stopped, worker.refused)
        for name, worker in sorted(found.workers.items())
        if name in set(members)
    ]


def _latest(consumer: Consumer, topic: str, partitions: int) -> dict[bytes, bytes]:
    return latest(read_topic(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING), None))


def _replays(consumer: Consumer, topic: str, partitions: int) -> list[ReplayStatus]:
    found = sorted(map(decode_replay, _latest(consumer, topic, partitions).values()), key=lambda one: one.at)
    return [
        ReplayStatus(one.id, one.state, one.suffix or "the live topics", one.progress.read, one.total) for one in found
    ]


def _sinks(consumer: Consumer, topic: str, partitions: int) -> list[SinkStatus]:
    said = map(msgspec.json.decode, _latest(consumer, topic, partitions).values())
    found = [SinkStatus(one["sink"], one["topic"], one["partition"], one["reason"]) for one in said]
    return sorted(found, key=lambda one: (one.sink, one.topic, one.partition))


def _lag(consumer: Consumer, agent: str, topic: str, partitions: int) -> Lag:
    committed = {
        tp.partition: tp.offset if tp.offset >= 0 else OFFSET_BEGINNING
        for tp in consumer.committed([TopicPartition(topic, p) for p in range(partitions)], READ_TIMEOUT_S)
    }
    behind = 0
    for partition, offset in committed.items():
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), READ_TIMEOUT_S)
        behind += max(0, high - max(low, offset))
    if behind > COUNTED:
        return Lag(agent, topic, behind, exact=False)
    return Lag(agent, topic, len(read_topic(consumer, topic, committed, COUNTED)), exact=True)


def _lags_of_others(settings: Settings, topics: Topics, there: Mapping[str, int]) -> Iterator[Lag]:
    """Yield the lag of what reads in groups of its own: mirrors, replicas, Pub/Sub, more lakes."""
    kinds = {
        **{("lake", lake.name): topics.sinks_of(lake) for lake in settings.lakes},
        **{("mirror", mirror.name): _some(topics.sinks, mirror.sinks) for mirror in settings.mirrors},
        **{("pubsub", pubsub.name): _some(topics.sinks, pubsub.sinks) for pubsub in settings.pubsubs},
        **{("replica", replica.name): _some(topics.sinks, replica.sinks) for replica in settings.replicas},
    }
    for (kind, name), sinks in kinds.items():
        with reading(settings, group_of(settings.prefix, kind, name)) as consumer:
            for topic in sinks.values():
                if topic in there:
                    yield _lag(consumer, f"{kind}.{name}", topic, there[topic])


def _some(sinks: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: topic for name, topic in sinks.items() if not names or name in names}


def _open_letters(consumer: Consumer, topics: Topics, there: Mapping[str, int]) -> int:
    """Count the open dead letters, all of them; none is kept in memory."""
    done = dead_letter_states(consumer, topics.dead_letter_states, there.get(topics.dead_letter_states, 0))
    start = dict.fromkeys(range(there.get(topics.dead_letter, 0)), OFFSET_BEGINNING)
    return sum(
        f"{record.partition()}-{record.offset()}" not in done
        for record in each_record(consumer, topics.dead_letter, start)
    )
