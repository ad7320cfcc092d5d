"""The one thread that owns librdkafka's consumer and polls it forever.

Rebalances are handled immediately and `max.poll.interval.ms` never expires. No other thread may call the handle: the binding
lets one caller in at a time and the others starve, so they hand in commands (`call`) and read `membership`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

from pipeline.errors import HeadwaterError
from pipeline.transport import clients
from pipeline.transport.backlog import Backlog, size_of
from pipeline.transport.fatal import stop_process

log = logging.getLogger(__name__)
T = TypeVar("T")

FETCH, GATHER = 2_000, 0.005
"""Records taken from librdkafka in one call at most, and the seconds that it waits for so many: each hand-over to the event
loop has its price, whatever it holds."""
CROWDED_S = 0.01
"""Seconds between two records while the backlog is full."""
MEMBERSHIP_AGE_S = 0.05
"""Seconds after which the group membership is read again. An old one is safe: the broker refuses it."""
REBALANCE_TIMEOUT = 120.0
COMMIT_TIMEOUT = 60.0


def is_member(metadata: bytes) -> bool:
    """Say whether group metadata names a membership.

    The bytes are opaque to the API: `CGMDv2:`, int32 generation in machine order (with KIP-848 the member's epoch), group,
    NUL, member, NUL. What a client holds after it was evicted from the group (generation -1, no member) the broker would
    ACCEPT, unfenced. Both count from 1: a KIP-848 member that is about to join has a name and epoch 0.
    """
    _, member, *_ = metadata[11:].split(b"\0")
    generation = int.from_bytes(metadata[7:11], sys.byteorder, signed=True)
    return metadata[:7] == b"CGMDv2:" and generation > 0 and member != b""


def member_id(metadata: bytes) -> str:
    """Return the member's name in group metadata that `is_member` has approved."""
    return metadata[11:].split(b"\0")[1].decode()


class Reader:
    """Owns the consumer. The callbacks run on the event loop; `starts` and `rebalance` are waited for by the thread.

    Nothing is read before it is said from where: `starts` gives the offsets of new partitions, `restart` those of others. A
    partition whose offset is not known yet is not part of librdkafka's assignment, and no offset there is a logical one like
    OFFSET_END: the broker's answer to what a logical one is may come after the partition was assigned again, and moves it.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        backlog: Backlog,
        *,
        incremental: bool,
        never_read: Callable[[str], bool],
        on_records: Callable[[list[tuple[TP, list[Message], int]]], None],
        on_end: Callable[[TP, int], None],
        on_gone: Callable[[TP, int], None],
        starts: Callable[[set[TP]], Awaitable[Mapping[TP, int]]],
        rebalance: Callable[[set[TP], set[TP], bool], Awaitable[None]],
    ) -> None:
        self.membership: bytes | None = None
        """Group metadata as of now, or None without a membership."""
        self.lost = 0
        """How often partitions were lost silently: a slice that saw it move must abort."""
        self._conf, self._backlog, self._incremental = dict(conf), backlog, incremental
        self._never_read = never_read
        self._on_records, self._on_end, self._rebalance = on_records, on_end, rebalance
        self._on_gone, self._starts = on_gone, starts
        """`on_gone` gets a partition and an offset that its log does not have: it is idle until its restart."""
        self._commands: deque[tuple[Callable[[RdConsumer], Any], asyncio.Future[Any]]] = deque()
        self._paused: frozenset[TP] = frozenset()
        self._owned: set[TP] = set()
        """The partitions that the group has given, but for fences."""
        self._from: dict[TP, int] = {}
        """Those that are read, and where from: before its first record librdkafka has no position of one."""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="kafka-reader", daemon=True)

    def start(self) -> None:
        """Start the thread; call on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Leave the group and end the thread."""
        self._closing = True
        await asyncio.to_thread(self._thread.join, REBALANCE_TIMEOUT)

    def subscribe(self, topics: list[str]) -> Awaitable[None]:
        """Join the group for these topics."""
        return self.call(
            lambda rd: rd.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        )

    def restart(self, tp: TP, offset: int, is_valid: Callable[[], bool]) -> Awaitable[bool]:
        """Read a partition from an offset on, if that is still valid; False: its assignment is not there, or not yet."""
        return self.call(lambda rd: is_valid() and self._restart(rd, {tp: offset}))

    def _restart(self, rd: RdConsumer, new: dict[TP, int]) -> bool:
        if not new.keys() <= self._owned:
            return False
        if self._incremental:
            if again := new.keys() & self._from.keys():
                rd.incremental_unassign([TopicPartition(*tp) for tp in again])
            rd.incremental_assign(_at(new))
        else:  # only as a whole: what the others have prefetched is fetched again
            others = [tp for tp in self._from if tp not in new]
            places = rd.position([TopicPartition(*tp) for tp in others])
            # Of what was not read since the last time there is no position: it stays where that was.
            self._from.update((tp, p.offset) for tp, p in zip(others, places, strict=True) if p.offset >= 0)
            rd.assign(_at(self._from | new))
        self._from.update(new)
        # A pause outlives an assignment; what must be paused is paused again.
        rd.resume(_at(new if self._incremental else self._from))
        self._paused = frozenset()
        return True

    def call(self, function: Callable[[RdConsumer], T]) -> asyncio.Future[T]:
        """Run `function(consumer)` in the thread; call on the event loop."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._commands.append((function, future))
        return future

    def commit(self, at: Sequence[TopicPartition]) -> None:
        """Commit offsets and wait for it, in another thread than the reader's; raise KafkaException when refused."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run(consumer: RdConsumer) -> None:
            try:
                consumer.commit(offsets=list(at), asynchronous=False)
            except Exception as error:  # noqa: BLE001 - it belongs to the caller
                done.set_exception(error)
            else:
                done.set_result(None)

        self._loop.call_soon_threadsafe(self.call, run)
        done.result(COMMIT_TIMEOUT)

    def _run(self) -> None:
        try:
            consumer = RdConsumer(self._conf, logger=clients.log)
            while not self._closing:
                self._serve(consumer)
                # Above the bound one record at a time: the poll serves the callbacks whatever the backlog.
                full = not self._backlog.has_room.wait(CROWDED_S)
                message = consumer.poll(0 if full else 0.05)
                if message is not None:
                    # consume(n, t) waits for n records or t: poll waits for the first, consume for more of them.
                    self._hand_over(consumer, [message] if full else [message, *consumer.consume(FETCH, GATHER)])
            consumer.close()
        except Exception as error:  # noqa: BLE001 - the thread is the worker's life line: whatever it is, say it and stop
            stop_process(f"the consumer thread failed: {error!r}")

    _membership_read_at = 0.0

    def _serve_commands(self, consumer: RdConsumer) -> None:
        while self._commands:
            function, future = self._commands.popleft()
            try:
                result = function(consumer)
            except Exception as error:  # noqa: BLE001 - it belongs to the caller
                self._loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                self._loop.call_soon_threadsafe(_settle, future, result, None)

    def _serve(self, consumer: RdConsumer) -> None:
        self._serve_commands(consumer)
        now = time.monotonic()
        if now > self._membership_read_at + MEMBERSHIP_AGE_S:
            self._membership_read_at = now
            metadata = consumer.consumer_group_metadata()
            self.membership = metadata if is_member(metadata) else None
        wanted = self._backlog.paused
        if wanted != self._paused:
            for change, partitions in (
                (consumer.pause, wanted - self._paused),
                (consumer.resume, self._paused - wanted),
            ):
                try:
                    if partitions:
                        change([TopicPartition(*tp) for tp in partitions])
                except KafkaException as error:
                    log.debug("pause or resume of a partition that is gone: %s", error)
            self._paused = wanted

    def _hand_over(self, consumer: RdConsumer, messages: list[Message]) -> None:
        groups: list[tuple[TP, list[Message]]] = []
        current: list[Message] = []
        topic: str | None = None
        partition: int | None = None
        for message in messages:
            error = message.error()
            if error is not None:
                self._report(consumer, message, error)
                continue
            if message.partition() != partition or message.topic() != topic:
                topic, partition = message.topic(), message.partition()
                groups.append((_partition(message), current := []))
            current.append(message)
        if groups:  # measured here, while they are in this core's cache
            self._loop.call_soon_threadsafe(
                self._on_records, [(tp, records, size_of(records)) for tp, records in groups]
            )

    def _report(self, consumer: RdConsumer, message: Message, error: KafkaError) -> None:
        if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the documented name of the code
            self._loop.call_soon_threadsafe(self._on_end, _partition(message), cast("int", message.offset()))
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001 - how the offset policy `error` reports it
            self._is_gone(consumer, _partition(message), cast("int", message.offset()))
        elif error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - what wraps a fatal error is not flagged so
            name = self._conf.get("group.instance.id")
            stop_process(
                f"the Kafka consumer failed permanently: {error.str()}",
                hint=f"kafka.instance_id {name!r} must be this worker's alone, and is taken until a worker that was killed has "
                "timed out; start again"
                if name
                else "headwater check",
            )
        else:
            log.warning("Kafka consumer: %s", error)

    def _is_gone(self, consumer: RdConsumer, tp: TP, offset: int) -> None:
        """Leave a partition out until its restart: assigned at the same offset again, it would be reported again."""
        if self._from.pop(tp, None) is None:
            return
        if self._incremental:
            consumer.incremental_unassign([TopicPartition(*tp)])
        self._loop.call_soon_threadsafe(self._on_gone, tp, offset)

    # Rebalance callbacks: they run in this thread, inside poll(), which waits for the event loop to end its slice.

    def _assigned(self, consumer: RdConsumer, partitions: list[TopicPartition]) -> None:
        tps = {TP(p.topic, p.partition) for p in partitions}
        read = {tp for tp in tps if not self._never_read(tp.topic)}
        found: Mapping[TP, int] = self._wait_for(consumer, self._starts(read), "finding the offsets to read from")
        if self._incremental:
            consumer.incremental_assign(_at(found))
        else:
            self._owned.clear()
            self._from.clear()
            consumer.assign(_at(found))
        self._owned |= read
        self._from.update(found)
        self._membership_read_at = 0.0
        self._wait_for(consumer, self._rebalance(tps, set(), False), "a rebalance")

    def _revoked(self, consumer: RdConsumer, partitions: list[TopicPartition], lost: bool = False) -> None:
        if lost:
            self.lost += 1
            self.membership = None
        tps = {TP(p.topic, p.partition) for p in partitions}
        read = [TopicPartition(*tp) for tp in tps if self._from.pop(tp, None) is not None]
        self._owned -= tps
        self._paused -= tps
        self._wait_for(consumer, self._rebalance(set(), tps, lost), "a rebalance")
        if self._incremental:
            consumer.incremental_unassign(read)
        else:
            consumer.unassign()

    def _lost(self, consumer: RdConsumer, partitions: list[TopicPartition]) -> None:
        self._revoked(consumer, partitions, lost=True)

    def _wait_for(self, consumer: RdConsumer, what: Awaitable[T], name: str) -> T:
        async def run() -> T:
            return await what

        try:
            done = asyncio.run_coroutine_threadsafe(run(), self._loop)
            deadline = time.monotonic() + REBALANCE_TIMEOUT
            while not done.done() and time.monotonic() < deadline:
                # The slice that must end first may itself need this thread, to commit offsets.
                self._serve_commands(consumer)
                concurrent.futures.wait([done], 0.01)
            return done.result(0)
        except concurrent.futures.TimeoutError:
            stop_process(
                f"{name} took more than {REBALANCE_TIMEOUT:.0f} s: the slice under way does not end, or no broker answers"
            )
        except HeadwaterError as error:
            stop_process(error.message, hint=error.hint)
        except Exception as error:  # noqa: BLE001 - a half-done rebalance cannot be repaired from here
            stop_process(f"{name} failed: {error!r}")


def _at(offsets: Mapping[TP, int]) -> list[TopicPartition]:
    return [TopicPartition(*tp, offset) for tp, offset in offsets.items()]


def _partition(message: Message) -> TP:
    return TP(cast("str", message.topic()), cast("int", message.partition()))


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
