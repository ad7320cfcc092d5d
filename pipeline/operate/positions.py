"""Where the agents are in their topics, whether that is still valid, and how to continue where it is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from faust.types import TP

from pipeline.errors import FatalError, UsageError
from pipeline.settings.root import Settings
from pipeline.settings.sinks import group_of
from pipeline.state.kept import Kept, kept
from pipeline.state.table_partitions import HEADER, SAID, encode_positions
from pipeline.state.table_partitions import SourcePosition as Told
from pipeline.topics.admin import Admin, admin, look, unreachable
from pipeline.topics.names import Topics
from pipeline.topics.read import reading
from pipeline.transport import clients
from pipeline.transport.committed import Committed, committed
from pipeline.transport.logs import UNKNOWN, logs_of
from pipeline.transport.questions import EARLIEST, LATEST, offsets_of
from pipeline.transport.starts import PartitionState, start_of

POSITIONS_TIMEOUT_S = 20.0
LEAVING_S, POSITIONS_LOOK_S = 3.0, 0.5
"""Seconds beyond the session time-out until a broker has taken note of a worker's end, and between two looks."""
Say = Callable[[str], None]
Clock = Callable[[], float]
Sleep = Callable[[float], None]
At = Literal["", "beginning", "end"]
"""Where to continue; '': where the state of the agent ends, if that is known, else as fits what has happened."""


@dataclass(frozen=True, slots=True)
class GroupPosition:
    """Where a group is in a partition."""

    group: str
    topic: str
    partition: int
    offset: int | None
    """The committed offset; None: nothing was committed."""
    low: int
    end: int
    log: str
    """The log that is there: cluster ID and topic ID."""
    problem: str
    """Why a worker stops there, or ''."""

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def positions(settings: Settings) -> list[GroupPosition]:
    """Return where all groups of a deployment are. Raises FatalError when the cluster cannot be reached."""
    topics, client = Topics(settings), admin(settings.kafka.conf)
    counts = {found.wanted.name: found.partitions for found in look(client, topics.all())}
    found = []
    for group, names in _groups(settings, topics).items():
        tps = [TP(topic, p) for topic in names for p in range(counts.get(topic, 0))]
        found += [_position(group, tp, there) for tp, there in _there(client, group, tps).items()]
    return found


def _groups(settings: Settings, topics: Topics) -> dict[str, list[str]]:
    """Return what each group reads."""
    own = [topics.ingest, topics.raw, topics.retry]
    lake = list(topics.sinks_of(settings.lake).values()) if settings.lake.url else []
    others = {
        group_of(settings.prefix, kind, one.name): [
            topic for name, topic in topics.sinks.items() if not one.sinks or name in one.sinks
        ]
        for kind, some in (
            ("lake", settings.lakes),
            ("mirror", settings.mirrors),
            ("replica", settings.replicas),
            ("pubsub", settings.pubsubs),
        )
        for one in some
    }
    return {settings.prefix: [*own, *lake], **others}


def _there(client: Admin, group: str, tps: list[TP]) -> dict[TP, PartitionState]:
    try:
        found = committed(client, group, tps)
        logs = logs_of(client, {tp.topic for tp in tps})
        lows, ends = offsets_of(client, tps, EARLIEST), offsets_of(client, tps, LATEST)
    except KafkaException as error:
        raise unreachable(error) from error
    return {
        tp: PartitionState(found.get(tp, Committed(None)), logs.get(tp.topic, UNKNOWN), lows[tp], ends[tp])
        for tp in tps
    }


def _position(group: str, tp: TP, there: PartitionState) -> GroupPosition:
    problem = ""
    try:
        start = start_of(tp, there, group)
        problem = str(start.lost) if start.lost is not None else ""
    except FatalError as error:
        problem = error.message
    if not there.committed.is_stable:
        problem = "a transaction is under way"
    return GroupPosition(group, *tp, there.committed.offset, there.low, there.end, str(there.log), problem)


def accept(
    settings: Settings,
    topic: str,
    group: str = "",
    at: At = "",
    *,
    say: Say = lambda line: None,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> list[GroupPosition]:
    """Let a group continue in a topic as it is now; return where. Stop its workers first: it waits for the session time-out.

    What was read before is not read again, where that is known: the seen table knows the offsets of the ingest topic. In
    another log than the one read before, all of it is new. Raises UsageError, FatalError.
    """
    topics, client = Topics(settings), admin(settings.kafka.conf)
    groups = {name: read for name, read in _groups(settings, topics).items() if topic in read and group in {"", name}}
    if not groups:
        known = sorted({one for read in _groups(settings, topics).values() for one in read})
        raise UsageError(
            f"nothing reads the topic {topic}{' in the group ' + group if group else ''}",
            hint=f"headwater positions; one of {', '.join(known)}",
        )
    done = []
    for name in groups:
        _require_stopped(client, name, settings.kafka.session_timeout, say, clock, sleep)
        counts = {found.wanted.name: found.partitions for found in look(client, topics.all())}
        tps = [TP(topic, p) for p in range(counts.get(topic, 0))]
        if not tps:
            raise FatalError(f"there is no topic {topic}", hint="headwater topics --create")
        there = _there(client, name, tps)
        if at or any(_position(name, tp, one).problem or one.committed.offset is None for tp, one in there.items()):
            kept = _kept(settings, topics, topic, tps) if not at else {}
            _require_known(settings, topic, there, kept, at)
            offsets = {tp: _offset(one, kept.get(tp, Kept()), at) for tp, one in there.items()}
            _tell_state(settings, topics, there, offsets)
            _commit(client, name, there, offsets)
        done += [_position(name, tp, one) for tp, one in _there(client, name, tps).items()]
    return done


def _require_stopped(client: Admin, group: str, seconds: float, say: Say, clock: Clock, sleep: Sleep) -> None:
    """Wait until a group has no workers; raise UsageError where it has some after so many seconds.

    A worker that has ended because of its position has left silently: the group knows after its session time-out.
    """
    deadline = clock() + seconds + LEAVING_S
    waits = False
    while count := _members(client, group):
        if clock() >= deadline:
            raise UsageError(
                f"the group {group} has {count} workers that run", hint="stop them, then run this command again"
            )
        if not waits:
            say(
                f"the group {group} has {count} workers: waiting up to {seconds + LEAVING_S:.0f} s for those that have ended"
            )
            waits = True
        sleep(POSITIONS_LOOK_S)


def _members(client: Admin, group: str) -> int:
    try:
        return len(
            client.describe_consumer_groups([group], request_timeout=POSITIONS_TIMEOUT_S)[group]
            .result(POSITIONS_TIMEOUT_S)
            .members
        )
    except KafkaException:  # there is no such group
        return 0


def _require_known(
    settings: Settings, topic: str, there: Mapping[TP, PartitionState], kept: Mapping[TP, Kept], at: At
) -> None:
    """Raise UsageError where nothing tells how far the group has come in this very log."""
    for tp, one in there.items():
        position = kept.get(tp, Kept())
        if at or one.committed.offset is not None or position.offset is not None or one.low == one.end:
            continue
        if position.log == UNKNOWN or position.log.may_be(one.log):
            raise UsageError(
                f"it is not known how far the group has read {topic}[{tp.partition}]: Kafka has forgotten it",
                hint=f"headwater positions accept {topic} --at end skips what is there, --at beginning processes it again; or "
                f"kafka-consumer-groups.sh --bootstrap-server {settings.kafka.bootstrap_servers} --group {settings.prefix} "
                f"--topic {topic} --reset-offsets --to-datetime <when the workers stopped> --execute",
            )


def _offset(there: PartitionState, kept: Kept, at: At) -> int:
    """Return where to continue."""
    if at:
        return there.low if at == "beginning" else there.end
    if not there.committed.log.may_be(there.log):
        return there.low
    if kept.offset is not None and kept.log.may_be(there.log) and there.low <= kept.offset <= there.end:
        return kept.offset
    offset = there.committed.offset
    if offset is None:
        return there.low
    return min(max(offset, there.low), there.end)


def _kept(settings: Settings, topics: Topics, topic: str, tps: Iterable[TP]) -> dict[TP, Kept]:
    with reading(settings) as consumer:
        return {tp: kept(consumer, topics, tp) for tp in tps}


def _tell_state(
    settings: Settings, topics: Topics, there: Mapping[TP, PartitionState], offsets: Mapping[TP, int]
) -> None:
    """Tell the state of the agent where its source continues: a recovery compares the committed offset with it."""
    records: list[tuple[str, bytes, bytes, int, list[tuple[str, bytes]]]] = []
    for tp, offset in offsets.items():
        log = str(there[tp].log)
        if tp.topic == topics.ingest:
            key = offset.to_bytes(8, "big") + log.encode()
            records.append((topics.seen, msgspec.msgpack.encode({}), key, tp.partition, []))
        elif tp.topic == topics.raw:
            header = (HEADER, encode_positions([Told(*tp, offset, log)]))
            records.append((topics.flow_state, b"1", SAID, tp.partition, [header]))
    if not records:
        return
    producer = clients.producer(settings.kafka.conf)
    for topic, value, key, partition, headers in records:
        producer.produce(topic, value, key, partition, headers=headers)  # type: ignore[arg-type]  # the stub is too narrow
    if producer.flush(POSITIONS_TIMEOUT_S):
        raise FatalError(f"the topic {records[0][0]} cannot be written", hint="headwater check")


def _commit(client: Admin, group: str, there: Mapping[TP, PartitionState], offsets: Mapping[TP, int]) -> None:
    at = [TopicPartition(*tp, offset, str(there[tp].log)) for tp, offset in offsets.items()]
    (future,) = client.alter_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(group, at)], request_timeout=POSITIONS_TIMEOUT_S
    ).values()
    try:
        failed = [tp for tp in future.result(POSITIONS_TIMEOUT_S).topic_partitions if tp.error is not None]
    except KafkaException as error:
        raise unreachable(error) from error
    if failed:
        raise FatalError(f"the offset of {failed[0].topic}[{failed[0].partition}] is refused: {failed[0].error}")
