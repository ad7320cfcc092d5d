"""Sink topics on another Kafka cluster: every record once, in its partition, in order.

A flush is ONE transaction of the other cluster: the records, and how far they go (the offset after the last of them, here) as
an offset of a group there. So records and position are there together, or neither. Each partition has a transactional ID
of its own: who opens it fences off the former owner and decides what that one left open, and then reads the position. The
same is done after every failure, so that a commit whose outcome is unknown has one.

A record that the other cluster refuses permanently is left out. Its offset is kept with the position until the dead letter is
written here: no crash between the two clusters loses it.

With the position are the logs that it is between, here and there. Where the topic here was recreated, the position says
nothing of the new one: it is copied from its beginning, behind what is there. Where the topic there was recreated, somebody
has to choose.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from faust.types import TP

from pipeline.errors import FatalError, RejectedError, TransientError, UsageError
from pipeline.limits import MESSAGE_MAX
from pipeline.settings.sinks import MirrorSettings
from pipeline.sinks.base import NOTHING, Flushed, Rejected, Sink, Writer, offset_is_of
from pipeline.sinks.mirror.other_cluster import OTHER_CLUSTER_TIMEOUT_S, MirrorPosition, OtherCluster, metadata_of
from pipeline.topics.admin import admin, look
from pipeline.topics.names import Topic
from pipeline.transport import clients
from pipeline.transport.committed import Committed
from pipeline.transport.fatal import ends_process_after
from pipeline.transport.logs import UNKNOWN, Log

log = logging.getLogger(__name__)

MIRRORED_FROM = "mirrored_from"
"""The header that names the clusters from which a record has come, one each."""
RECORDS, BYTES = 20_000, 16 << 20
"""Records, and bytes of their values, in a transaction at most."""
CAREFUL, MOST_REFUSED = 1_000, 100
"""The same while those that are refused are looked for, and how many of them a transaction leaves out at most."""
NEVER_TAKEN_THERE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_TIMESTAMP, KafkaError.INVALID_RECORD}
"""What a broker says of a record that it will never take."""
REMEMBERED_S = 86_400.0
"""Seconds after which a position is written again: a cluster forgets those that are old (offsets.retention.minutes)."""
MIRROR_CUT_OFF_AFTER_S = 5.0
"""Seconds that a producer is used at least, whatever connections it loses: see docs/decisions/0010."""
MIRROR_LOOK_S = 0.2
"""Seconds between two looks whether a transaction has failed."""
MIRROR_STUCK_S = OTHER_CLUSTER_TIMEOUT_S + 10
"""Seconds after which sending the offsets is taken for a call that never returns: the same."""


def copied(mirror: MirrorSettings, sinks: Mapping[str, str], partitions: int) -> dict[str, Topic]:
    """Return the topics that a mirror copies, of these sinks and their topics; each as it is to be there."""
    if unknown := sorted(set(mirror.sinks) - sinks.keys()):
        raise UsageError(
            f"the mirror {mirror.name}: no flow has a sink {', '.join(unknown)}",
            hint=f"sinks of [[mirrors]]: {', '.join(sinks) or 'there is none'}",
        )
    if not sinks:
        raise UsageError(f"the mirror {mirror.name}: no flow has a sink to copy", hint="headwater check")
    config = {"cleanup.policy": "delete", "retention.ms": "-1", "max.message.bytes": str(MESSAGE_MAX)}
    found = {
        topic: Topic(mirror.topic.format(topic=topic, sink=sink), partitions, f"copy of {topic}", config)
        for sink, topic in sinks.items()
        if sink in (mirror.sinks or sinks)
    }
    if len({topic.name for topic in found.values()}) < len(found):
        raise UsageError(
            f"the mirror {mirror.name}: topic = {mirror.topic!r} would make several topics one",
            hint='topic = "{topic}" keeps their names',
        )
    return found


class Mirror(Sink):
    """Another Kafka cluster."""

    name = "mirror"
    threads = 8  # they mostly wait for the other cluster, which may be far away

    def __init__(
        self, settings: MirrorSettings, here: Mapping[str, Any], group: str, topics: Mapping[str, Topic]
    ) -> None:
        """Name how this cluster is reached, and the topics that are copied, each as it is to be there."""
        self.settings, self.topics = settings, topics
        self._here, self._group = dict(here), group
        self.other = OtherCluster(settings)
        self.id = group
        """What this mirror is called there: its group, and what its transactional IDs begin with."""
        self.mark = MIRRORED_FROM, b""
        self.passed: frozenset[tuple[str, bytes]] = frozenset()
        """Headers of records that are not sent: they were there, or here, before."""

    def prepare(self) -> None:
        """Look at both clusters and make the topics that are missing there; blocks, raises HeadwaterError."""
        client = admin(self._here)
        look(client, [])
        here = str(client.list_topics(timeout=OTHER_CLUSTER_TIMEOUT_S).cluster_id or "")
        there = self.other.look(list(self.topics.values()))
        if here and here == there:
            raise FatalError(
                f"the mirror {self.settings.name}: {self.other} is this cluster itself",
                hint="set bootstrap_servers of [[mirrors]] to another one",
            )
        if not (name := self.settings.cluster or here):
            raise FatalError("this cluster has no ID", hint="set cluster of [[mirrors]]")
        # By the ID of this cluster: one that mirrors back, or another one with the same settings, must not meet us there.
        self.id = f"{self._group}.{here or name}"
        self.mark = MIRRORED_FROM, name.encode()
        names = {name, there, self.settings.target_cluster or ""} - {""}
        self.passed = frozenset((MIRRORED_FROM, one.encode()) for one in names)

    def open(self, tp: TP, start: int, log: Log = UNKNOWN, committed: Committed = NOTHING) -> Writer:
        """Fence off the former owner, and continue from what is there."""
        writer = MirrorWriter(self, tp, log)
        writer.take_over()
        try:
            known, end = self._known_here(tp)
        except KafkaException as error:
            raise TransientError(f"{tp.topic}[{tp.partition}]: {error.args[0].str()}") from error
        if offset_is_of(log, committed, start) == "other":
            known = None
        self._require_plausible(writer, known, end, log)
        writer.begin(known or 0)
        return writer

    def _known_here(self, tp: TP) -> tuple[int | None, int]:
        """Return the group's stable offset, and the end of the partition."""
        consumer = clients.consumer(self._here, self._group)
        try:
            (at,) = consumer.committed([TopicPartition(*tp)], OTHER_CLUSTER_TIMEOUT_S)
            _, end = consumer.get_watermark_offsets(TopicPartition(*tp), OTHER_CLUSTER_TIMEOUT_S)
        finally:
            consumer.close()
        return at.offset if at.offset >= 0 else None, end

    def _require_plausible(self, writer: MirrorWriter, committed: int | None, end: int, here: Log) -> None:
        """Raise FatalError where continuing from the position that was found would leave records out, or duplicate them.

        This cluster's offset follows the other's position: it is never beyond it. It may be beyond the markers of
        transactions, so that the first record given does not say.
        """
        there = writer.there
        reset = f"kafka-consumer-groups.sh --bootstrap-server {self.other} --group {self.id} --topic {there}"
        found, now = writer.found, writer.log_there
        if found is not None and not found.there.may_be(now):
            raise FatalError(
                f"{there} of {self.other}: the position {found.offset} is of another topic of this name there: "
                f"{found.there.difference(now)}",
                hint=f"{reset} --reset-offsets --to-offset {committed or 0} --execute (0 copies all of it again)",
            )
        if found is not None and not found.log.may_be(here):
            if not committed:
                log.info("%s: a new series: %s", there, found.log.difference(here))
                return
            raise FatalError(
                f"{there} of {self.other}: the position is of another log than this cluster's offset {committed}: "
                f"{found.log.difference(here)}; was the position restored?",
                hint=f"{reset} --reset-offsets --to-offset {committed} --execute (0 copies all of it again)",
            )
        if writer.position_there is None and committed is not None:
            raise FatalError(
                f"{there} of {self.other}: the position is gone, and this cluster says that everything before "
                f"{committed} was copied: was the topic recreated, or the position forgotten (offsets.retention.minutes)?",
                hint=f"{reset} --reset-offsets --to-offset {committed} --execute (0 copies all of it again)",
            )
        if writer.position_there is None and self._holds_ours(writer):
            raise FatalError(
                f"{there} of {self.other} holds records of this cluster, and no position is known on either side: all of "
                "them would be there twice",
                hint=f"{reset} --reset-offsets --to-offset N --execute, or delete the topic there",
            )
        if writer.position_there is not None and not (committed or 0) <= writer.position_there <= end:
            raise FatalError(
                f"{there} of {self.other}: its position is {writer.position_there}, and this cluster says that everything "
                f"before {committed or 0} was copied, of {end}: was one of them restored or its topic recreated?",
                hint=f"{reset} --reset-offsets --to-offset {committed or 0} --execute continues from here, and skips "
                "what is missing there; docs/how-to/mirror-to-another-cluster.md",
            )

    def _holds_ours(self, writer: MirrorWriter) -> bool:
        try:
            return self.other.holds(writer.topic, writer.partition, self.mark)
        except KafkaException as error:
            raise self.other.explain(error, writer.there) from error


class MirrorWriter(Writer):
    """One partition on its way to the other cluster."""

    def __init__(
        self, mirror: Mirror, tp: TP, here: Log = UNKNOWN, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._mirror, self._here, self._clock = mirror, here, clock
        self.found: MirrorPosition | None = None
        """The position as it was found there last, of whatever logs."""
        self.log_there = UNKNOWN
        self.topic, self.partition = mirror.topics[tp.topic].name, tp.partition
        self.there = f"{self.topic}:{self.partition}"
        self.position_there: int | None = None
        self._id = f"{mirror.id}.{tp.topic}.{tp.partition}"
        self._producer: Producer | None = None
        self._membership: Any = None
        self._records: list[Message] = []
        self._size = self._end = 0
        self._told = 0
        """The offset that the last flush has returned: the group's offset has followed it, and dead letters are written."""
        self._left_out: frozenset[int] = frozenset()
        """Offsets before the position that are not there: refused."""
        self._refused: dict[int, Rejected] = {}
        """Those that are not reported yet."""
        self._is_unnamed = False
        """Whether the position does not say of which log it is: then it is written again, and says so."""
        self._cut_off: KafkaError | None = None
        self._made_at = self._written_at = 0.0
        self._careful = False

    # -- the contract -------------------------------------------------------------------------------------------------

    def begin(self, committed: int) -> None:
        """Begin at this cluster's offset: records that were refused after it become dead letters yet."""
        there, self._told = self._there, committed
        self.position = min([there, *(offset for offset in self._left_out if offset >= committed)])

    def add(self, records: Sequence[Message], end: int) -> Sequence[Rejected]:
        """Take records in memory."""
        self._records += records
        self._size += sum(map(len, records))
        self._end = max(self._end, end)
        self._drop_what_is_there()
        return ()

    @property
    def size(self) -> int:
        """Bytes of the values in memory."""
        return self._size

    def is_due(self, now: float) -> bool:
        """Say yes as soon as there is anything, or the position is to be written again."""
        is_old = self._is_unnamed or now > self._written_at + REMEMBERED_S
        return self._end > self._told or (self._told == self._there and is_old)

    def flush(self) -> Flushed:
        """Write a transaction. After a failure, first find out what is there.

        What was found there is reported before anything else is written: the next position forgets what the last one left out.
        """
        while True:
            if self._producer is not None and self._lost_connection():
                self._discard()
            if self._producer is None:
                self.take_over()
            if self._told < self._there and self._end > self._told:
                return self._tell(min(self._end, self._there), {})
            records, end = self._next()
            known = len(self._refused)
            try:
                counts = self._write(cast("Producer", self._producer), records, end)
            except KafkaException as error:
                self._discard()
                if len(self._refused) > known or (error.args[0].code() in NEVER_TAKEN_THERE and not self._careful):
                    self._careful = True  # again, to find which of them it is; and again, without it
                    continue
                raise self._mirror.other.explain(error, self.there) from error
            except TransientError:
                self._discard()
                raise
            self._written(records, end)
            return self._tell(end, counts)

    def close(self) -> None:
        """Let go. Between two flushes no transaction is open."""
        self._producer = None

    # -- the other cluster --------------------------------------------------------------------------------------------

    @property
    def _there(self) -> int:
        return self.position_there or 0

    def take_over(self) -> None:
        """Fence off whoever wrote here before, this process included, and read how far that came."""
        other = self._mirror.other
        more = {"batch.num.messages": 1} if self._careful else {}
        try:
            producer = other.producer(self._id, self._on_error, **more)
            found = other.position(self._mirror.id, self.topic, self.partition)
            self.log_there = other.log_of(self.topic)
            self._membership = self._membership or other.membership(self._mirror.id)
            _flush(producer, 0)  # what went wrong until now is over
        except KafkaException as error:
            raise other.explain(error, self.there) from error
        self._producer, self._cut_off = producer, None
        self._made_at = self._written_at = self._clock()
        self._move_to(found)

    def _move_to(self, found: MirrorPosition | None) -> None:
        self.found, before = found, self.position_there
        if found is not None and not (found.log.may_be(self._here) and found.there.may_be(self.log_there)):
            found = None  # it says nothing of these logs
        if before is not None and (found is None or found.offset < before):
            raise FatalError(
                f"{self.there} of {self._mirror.other}: its position was {before} and is "
                f"{'gone' if found is None else found.offset}: was the topic recreated?",
                hint="start the mirror again: it says what to do",
            )
        if found is not None:
            self.position_there, self._left_out = found.offset, found.refused
            self._is_unnamed = found.log == UNKNOWN != self._here
            self._drop_what_is_there()

    def _drop_what_is_there(self) -> None:
        """Forget the records before the position, but those that were refused."""
        count = bisect_left(self._records, self._there, key=_offset)
        for record in self._records[:count] if self._left_out else ():
            if (offset := _offset(record)) in self._left_out:
                self._refused.setdefault(offset, Rejected(record, RejectedError(f"{self.there}: it was refused there")))
        self._forget(count)

    def _forget(self, count: int) -> None:
        self._size -= sum(map(len, self._records[:count]))
        del self._records[:count]

    def _next(self) -> tuple[list[Message], int]:
        """Return the records of the next transaction, and the offset up to which it goes."""
        records = self._records[: CAREFUL if self._careful else RECORDS]
        if self._size > BYTES:
            records = records[: bisect_left(list(accumulate(map(len, records))), BYTES) + 1]
        refused = [offset for offset in map(_offset, records) if offset in self._refused] if self._refused else []
        if len(refused) > MOST_REFUSED:
            records = [record for record in records if _offset(record) <= refused[MOST_REFUSED - 1]]
        return records, max(self._end, self._there) if len(records) == len(self._records) else _offset(records[-1]) + 1

    def _write(self, producer: Producer, records: Sequence[Message], end: int) -> dict[str, int]:
        """Write a transaction: records, and the position `end`; return what was done, by kind."""
        producer.begin_transaction()
        try:
            returned = self._produce(producer, records)
        except KafkaException:
            _require_whole(producer)
            raise
        until = self._clock() + OTHER_CLUSTER_TIMEOUT_S
        while left := _flush(producer, MIRROR_LOOK_S):
            _require_whole(producer)  # what is behind a record that was refused is never sent
            if self._clock() > until:
                why = f", {self._cut_off.str()}" if self._cut_off is not None else ""
                raise TransientError(f"{self.there}: {self._mirror.other} has not taken {left} records{why}")
        if (lost := self._lost_connection()) is not None:
            raise TransientError(f"{self.there}: {self._mirror.other}: a connection was lost: {lost.str()}")
        left_out = [offset for offset in self._refused if offset < end]
        position = MirrorPosition(end, frozenset(left_out), self._here, self.log_there)
        at = TopicPartition(self.topic, self.partition, end, metadata_of(position))
        with ends_process_after(
            MIRROR_STUCK_S, f"{self.there}: the position could not be sent: the call never returned"
        ):
            producer.send_offsets_to_transaction([at], self._membership, OTHER_CLUSTER_TIMEOUT_S)
        producer.commit_transaction(OTHER_CLUSTER_TIMEOUT_S)
        return {"records": len(records) - returned - len(left_out), "returned": returned}

    def _produce(self, producer: Producer, records: Sequence[Message]) -> int:
        """Hand records to librdkafka; return how many were left out because they have come from there."""
        produce, topic, partition = cast("Any", producer.produce), self.topic, self.partition
        mark, passed, refused, careful = self._mirror.mark, self._mirror.passed, self._refused, self._careful
        returned, report = 0, None
        for record in records:
            headers: Any = record.headers() or ()
            if headers and not passed.isdisjoint(headers):
                returned += 1
                continue
            if careful:
                if _offset(record) in refused:
                    continue
                report = partial(self._reported, record)
            key, value, at = record.key(), record.value(), record.timestamp()[1]
            record_args = topic, value, key, partition, report, None, at, [*headers, mark]
            try:
                produce(*record_args)
            except BufferError:  # the user has set a small queue
                clients.with_room(partial(produce, *record_args), producer.poll)
            except KafkaException as error:
                if error.args[0].code() not in NEVER_TAKEN_THERE:
                    raise
                self._refuse(record, error.args[0])  # by librdkafka, before it was in the transaction
        return returned

    def _written(self, records: Sequence[Message], end: int) -> None:
        self.position_there, self._left_out, self._is_unnamed = end, frozenset(), False
        self._written_at = self._clock()
        self._forget(len(records))
        if self._careful:
            self._careful = False
            self._discard()

    def _tell(self, end: int, counts: Mapping[str, int]) -> Flushed:
        rejected = [self._refused.pop(offset) for offset in sorted(self._refused) if offset < end]
        self._told = end
        return Flushed(end, counts, rejected)

    def _discard(self) -> None:
        """Let the producer go: what it has open is aborted when the next one takes over."""
        if self._producer is not None:
            with suppress(KafkaException):
                if self._careful:
                    _flush(self._producer, 5 * MIRROR_LOOK_S)  # the reports say which record it was
                self._producer.purge()
                _flush(self._producer, 0)
            self._producer = None

    # -- reports of librdkafka, in the thread of the flush ------------------------------------------------------------

    def _reported(self, record: Message, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() in NEVER_TAKEN_THERE:
            self._refuse(record, error)

    def _refuse(self, record: Message, error: KafkaError) -> None:
        why = RejectedError(f"{self.there}: {self._mirror.other} refuses it: {error.str()}")
        self._refused[_offset(record)] = Rejected(record, why)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}:  # noqa: SLF001 - documented names
            self._cut_off = error

    def _lost_connection(self) -> KafkaError | None:
        return self._cut_off if self._clock() > self._made_at + MIRROR_CUT_OFF_AFTER_S else None


def _offset(record: Message) -> int:
    return cast("int", record.offset())


def _require_whole(producer: Producer) -> None:
    """Raise why the transaction under way can only be aborted, if so: beginning another says it, and does nothing else."""
    try:
        producer.begin_transaction()
    except KafkaException as error:
        if error.args[0].code() != KafkaError._STATE:  # noqa: SLF001 - that it is under way is well
            raise


def _flush(producer: Producer, seconds: float) -> int:
    """Wait for the broker; return how many records it has not taken."""
    try:
        return producer.flush(seconds)
    except SystemError as error:  # a report came together with a fatal error: the binding confuses them
        if isinstance(error.__cause__, KafkaException):
            raise error.__cause__ from None
        raise
