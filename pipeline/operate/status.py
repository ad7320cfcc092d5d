"""`headwater status`: shards and positions, lag by agent, dead letters, gaps, workers; read from Kafka alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.errors import FatalError
from pipeline.flows.versions import KEY, WORKER, Version, Versions, WorkerFlows, decode_version, decode_worker
from pipeline.replay.plan import decode as decode_replay
from pipeline.settings.root import Settings
from pipeline.settings.sinks import group_of
from pipeline.sources.places import Gap, Known
from pipeline.sources.snapshots.known import Snapshots, is_snapshot, repaired
from pipeline.topics.names import Topics, admin, look, unreachable
from pipeline.transport import clients as kafka_clients

COUNTED = 10_000
"""Records read at most to tell a small lag exactly: the ends of transactions take offsets too."""
TIMEOUT = 20.0
STARTING = {
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
}
"""What a broker answers about a group while its coordinators come up, as they do when it is asked for the first time."""


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
    """Flows that stand, and why."""
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
    """A partition that does not go on to its destination, and why."""

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
    """What a lake, a mirror or a replica cannot do just now."""

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def status(settings: Settings) -> Status:
    """Read the state; raise FatalError when the cluster cannot be reached."""
    topics, client = Topics(settings), admin(settings.kafka.conf)
    there = {found.wanted.name: found.partitions for found in look(client, topics.all()) if found.partitions}
    members = _members(client, settings.prefix)
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


def gaps(settings: Settings) -> list[tuple[Gap, bool]]:
    """Return all gaps, in the order in which they were noticed, and whether each is repaired.

    Raises FatalError when the cluster cannot be reached.
    """
    topics = Topics(settings)
    there = {found.wanted.name: found.partitions for found in look(admin(settings.kafka.conf), topics.all())}
    with reading(settings) as consumer:
        known, snapshots = _known(consumer, topics.shards, there[topics.shards])
        found = _gaps(consumer, topics.gaps, there[topics.gaps])
    return [(gap, _is_repaired(gap, topics, known, snapshots)) for gap in found]


def tables_of(gap: Gap, settings: Settings) -> list[str]:
    """Return the tables whose snapshots repair a gap: of a topic on the way to raw, all that were ever captured."""
    topics = Topics(settings)
    there = {found.wanted.name: found.partitions for found in look(admin(settings.kafka.conf), topics.all())}
    with reading(settings) as consumer:
        known, _ = _known(consumer, topics.shards, there[topics.shards])
    return sorted(_tables_of(gap, topics, known))


def _tables_of(gap: Gap, topics: Topics, known: Known) -> set[str]:
    if gap.table:
        return {gap.table}
    return known.tables() if gap.topic in {topics.ingest, topics.raw} else set()


def _is_repaired(gap: Gap, topics: Topics, known: Known, snapshots: Snapshots) -> bool:
    return repaired(gap, snapshots.all.values(), _tables_of(gap, topics, known))


@contextmanager
def reading(settings: Settings, group: str = "") -> Iterator[Consumer]:
    """Give a consumer that stands outside the group; raise FatalError when the cluster cannot be reached."""
    consumer = kafka_clients.consumer(settings.kafka.conf, group or settings.prefix, enable_partition_eof=True)
    try:
        yield consumer
    except KafkaException as error:
        raise unreachable(error) from error
    finally:
        consumer.close()


def clients(settings: Settings) -> list[str]:
    """Return the client IDs of the workers that are there."""
    return _members(admin(settings.kafka.conf), settings.prefix)


def _members(client: AdminClient, group: str) -> list[str]:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            members = client.describe_consumer_groups([group], request_timeout=TIMEOUT)[group].result().members
            return sorted(member.client_id for member in members)
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            if code not in STARTING or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _known(consumer: Consumer, topic: str, partitions: int) -> tuple[Known, Snapshots]:
    known, snapshots = Known({}, {}), Snapshots()
    for record in read(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING), None):
        key = bytes(record.key() or b"")
        stream, _, shard_id = key.decode().rpartition("/")
        if is_snapshot(stream):
            snapshots.take(stream, shard_id, record.value())
        else:
            known.take(key, record.value())
    return known, snapshots


def _shards(known: Known) -> list[ShardStatus]:
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


def flow_versions(consumer: Consumer, topic: str, partitions: int) -> Versions:
    """Read the flows topic."""
    applied, workers = Version(0), dict[str, WorkerFlows]()
    for record in read(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING), None):
        key, value = bytes(record.key() or b""), record.value()
        if key == KEY and value:
            applied = decode_version(value)
        elif key.startswith(WORKER) and value:
            said = decode_worker(value)
            workers[said.client] = said
    return Versions(applied, workers)


def _gaps(consumer: Consumer, topic: str, partitions: int) -> list[Gap]:
    records = read(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING), None)
    return [msgspec.json.decode(record.value() or b"", type=Gap) for record in records]


def _latest(consumer: Consumer, topic: str, partitions: int) -> dict[bytes, bytes]:
    return latest(read(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING), None))


def latest(records: Iterable[Message]) -> dict[bytes, bytes]:
    """Return what the records of a compacted topic say by key; what was taken back is left out."""
    found: dict[bytes, bytes] = {}
    for record in records:
        if value := record.value():
            found[record.key() or b""] = value
        else:
            found.pop(record.key() or b"", None)
    return found


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
        for tp in consumer.committed([TopicPartition(topic, p) for p in range(partitions)], TIMEOUT)
    }
    behind = 0
    for partition, offset in committed.items():
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), TIMEOUT)
        behind += max(0, high - max(low, offset))
    if behind > COUNTED:
        return Lag(agent, topic, behind, exact=False)
    return Lag(agent, topic, len(read(consumer, topic, committed, COUNTED)), exact=True)


def _lags_of_others(settings: Settings, topics: Topics, there: Mapping[str, int]) -> Iterator[Lag]:
    """Yield the lag of what reads in groups of its own: mirrors, replicas, more lakes."""
    kinds = {
        **{("lake", one.name): topics.sinks_of(one) for one in settings.lakes},
        **{("mirror", one.name): _some(topics.sinks, one.sinks) for one in settings.mirrors},
        **{("pubsub", one.name): _some(topics.sinks, one.sinks) for one in settings.pubsubs},
        **{("replica", one.name): _some(topics.sinks, one.sinks) for one in settings.replicas},
    }
    for (kind, name), sinks in kinds.items():
        with reading(settings, group_of(settings.prefix, kind, name)) as consumer:
            for topic in sinks.values():
                if topic in there:
                    yield _lag(consumer, f"{kind}.{name}", topic, there[topic])


def _some(sinks: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: topic for name, topic in sinks.items() if not names or name in names}


def letter_states(consumer: Consumer, topic: str, partitions: int) -> dict[str, str]:
    """Return what was done about dead letters, by ID (`partition-offset`); an open one is not among them."""
    states: dict[str, str] = {}
    for record in each(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING)):
        states[bytes(record.key() or b"").decode()] = msgspec.json.decode(record.value() or b"{}").get("state", "open")
    return {letter: state for letter, state in states.items() if state != "open"}


def _open_letters(consumer: Consumer, topics: Topics, there: Mapping[str, int]) -> int:
    """Count the letters that are open, all of them; none is kept."""
    done = letter_states(consumer, topics.dead_letter_states, there.get(topics.dead_letter_states, 0))
    start = dict.fromkeys(range(there.get(topics.dead_letter, 0)), OFFSET_BEGINNING)
    return sum(
        f"{record.partition()}-{record.offset()}" not in done for record in each(consumer, topics.dead_letter, start)
    )


def read(consumer: Consumer, topic: str, start: Mapping[int, int], most: int | None) -> list[Message]:
    """Read a topic from these offsets to its end as of now, `most` records at most.

    Raise FatalError when nothing more comes before the end.
    """
    return list(each(consumer, topic, start) if most is None else islice(each(consumer, topic, start), most))


def each(consumer: Consumer, topic: str, start: Mapping[int, int]) -> Iterator[Message]:
    """Yield the records of a topic from these offsets to its end as of now; none is kept.

    Raises FatalError when nothing more comes before the end.
    """
    open_partitions = set(start)
    if not start:
        return
    consumer.incremental_assign([TopicPartition(topic, partition, offset) for partition, offset in start.items()])
    deadline = time.monotonic() + TIMEOUT
    try:
        while open_partitions:
            found = consumer.consume(1_000, 0.1)
            if found:
                deadline = time.monotonic() + TIMEOUT
            elif time.monotonic() > deadline:
                raise FatalError(f"reading {topic}: nothing has come for {TIMEOUT:.0f} s", hint="headwater check")
            for message in found:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the documented name of the code
                    open_partitions.discard(message.partition() or 0)
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001 - deleted since the offset was asked for
                    at = TopicPartition(topic, message.partition() or 0)
                    low, _ = consumer.get_watermark_offsets(at, TIMEOUT)
                    consumer.incremental_unassign([at])
                    consumer.incremental_assign([TopicPartition(topic, at.partition, low)])
    finally:
        consumer.unassign()
