"""Where the agents are in their topics, and whether that still means something; and how to go on where it does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from faust.types import TP

from pipeline.errors import FatalError, UsageError
from pipeline.settings import Settings, group_of
from pipeline.state.seen import source_log, source_offset
from pipeline.status import read, reading
from pipeline.topics import Admin, Topics, admin, look, unreachable
from pipeline.transport import clients
from pipeline.transport.committed import Committed, committed
from pipeline.transport.logs import UNKNOWN, Log, logs_of
from pipeline.transport.questions import EARLIEST, LATEST, offsets_of
from pipeline.transport.starts import There, start_of

TIMEOUT = 20.0
LAST = 100
"""Offsets at a changelog's end among which its last message is looked for first."""
At = Literal["", "beginning", "end"]
"""Where to go on; '': where the state of the agent ends, if that is known, else as fits what has happened."""


@dataclass(frozen=True, slots=True)
class Position:
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


def positions(settings: Settings) -> list[Position]:
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


def _there(client: Admin, group: str, tps: list[TP]) -> dict[TP, There]:
    try:
        found = committed(client, group, tps)
        logs = logs_of(client, {tp.topic for tp in tps})
        lows, ends = offsets_of(client, tps, EARLIEST), offsets_of(client, tps, LATEST)
    except KafkaException as error:
        raise unreachable(error) from error
    return {tp: There(found.get(tp, Committed(None)), logs.get(tp.topic, UNKNOWN), lows[tp], ends[tp]) for tp in tps}


def _position(group: str, tp: TP, there: There) -> Position:
    problem = ""
    try:
        start = start_of(tp, there, group)
        problem = str(start.lost) if start.lost is not None else ""
    except FatalError as error:
        problem = error.message
    if not there.committed.is_stable:
        problem = "a transaction is under way"
    return Position(group, *tp, there.committed.offset, there.low, there.end, str(there.log), problem)


def accept(settings: Settings, topic: str, group: str = "", at: At = "") -> list[Position]:
    """Have a group go on in a topic as it is now; return where. Its workers must be stopped.

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
        _require_stopped(client, name)
        counts = {found.wanted.name: found.partitions for found in look(client, topics.all())}
        tps = [TP(topic, p) for p in range(counts.get(topic, 0))]
        if not tps:
            raise FatalError(f"there is no topic {topic}", hint="headwater topics --create")
        there = _there(client, name, tps)
        if at or any(_position(name, tp, one).problem or one.committed.offset is None for tp, one in there.items()):
            kept = _kept(settings, topics, topic, tps) if not at else {}
            offsets = {tp: _offset(one, kept.get(tp), at) for tp, one in there.items()}
            _mark_seen(settings, topics, there, offsets)
            _commit(client, name, there, offsets)
        done += [_position(name, tp, one) for tp, one in _there(client, name, tps).items()]
    return done


def _require_stopped(client: Admin, group: str) -> None:
    try:
        members = client.describe_consumer_groups([group], request_timeout=TIMEOUT)[group].result(TIMEOUT).members
    except KafkaException:  # there is no such group
        return
    if members:
        raise UsageError(
            f"the group {group} has {len(members)} workers that run", hint="stop them, then run this command again"
        )


def _offset(there: There, kept: tuple[int, Log] | None, at: At) -> int:
    """Return where to go on."""
    if at:
        return there.low if at == "beginning" else there.end
    if not there.committed.log.may_be(there.log):
        return there.low
    if kept is not None and kept[1].may_be(there.log) and there.low <= kept[0] <= there.end:
        return kept[0]
    offset = there.committed.offset
    if offset is None:
        return there.low
    return min(max(offset, there.low), there.end)


def _kept(settings: Settings, topics: Topics, topic: str, tps: Iterable[TP]) -> dict[TP, tuple[int, Log]]:
    """Return how far the state of the agent that reads a topic has come, where its changelog tells."""
    if topic != topics.ingest:
        return {}
    with reading(settings) as consumer:
        found = {tp: kept_position(consumer, TP(topics.seen, tp.partition)) for tp in tps}
    return {tp: position for tp, position in found.items() if position is not None}


def kept_position(consumer: Consumer, changelog: TP) -> tuple[int, Log] | None:
    """Return the source offset, and its log, that a partition of the changelog ends with; None: it is empty. Blocks."""
    low, end = consumer.get_watermark_offsets(TopicPartition(*changelog), TIMEOUT)
    for first in (max(low, end - LAST), low):  # ends of transactions take offsets, too
        if records := read(consumer, changelog.topic, {changelog.partition: first}, None):
            return source_offset(records[-1]), source_log(records[-1])
    return None


def _mark_seen(settings: Settings, topics: Topics, there: Mapping[TP, There], offsets: Mapping[TP, int]) -> None:
    """Tell the seen table from where its source goes on: a recovery must end at exactly that offset."""
    mine = {tp: offset for tp, offset in offsets.items() if tp.topic == topics.ingest}
    if not mine:
        return
    producer = Producer({**settings.kafka.conf, "enable.idempotence": True}, logger=clients.log)
    for tp, offset in mine.items():
        key = offset.to_bytes(8, "big") + str(there[tp].log).encode()
        producer.produce(topics.seen, msgspec.msgpack.encode({}), key, tp.partition)
    if producer.flush(TIMEOUT):
        raise FatalError(f"the topic {topics.seen} cannot be written", hint="headwater check")


def _commit(client: Admin, group: str, there: Mapping[TP, There], offsets: Mapping[TP, int]) -> None:
    at = [TopicPartition(*tp, offset, str(there[tp].log)) for tp, offset in offsets.items()]
    (future,) = client.alter_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(group, at)], request_timeout=TIMEOUT
    ).values()
    try:
        failed = [tp for tp in future.result(TIMEOUT).topic_partitions if tp.error is not None]
    except KafkaException as error:
        raise unreachable(error) from error
    if failed:
        raise FatalError(f"the offset of {failed[0].topic}[{failed[0].partition}] is refused: {failed[0].error}")
