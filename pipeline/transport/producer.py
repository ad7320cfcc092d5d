"""What Faust sends with. What an agent sends goes into its slice's transaction; what is sent outside of events, by itself."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as RdProducer
from faust.transport.producer import Producer as FaustProducer
from faust.types import TP, FutureMessage, RecordMetadata

from pipeline.errors import HeadwaterError, TransientError
from pipeline.limits import NEVER_TAKEN
from pipeline.transport import clients
from pipeline.transport.alarm import wait_at_most
from pipeline.transport.base import BaseTransport
from pipeline.transport.fatal import stop_process
from pipeline.transport.inside import is_inside
from pipeline.transport.partition import partition_of
from pipeline.transport.transaction import Transaction, too_bad

log = logging.getLogger(__name__)

PRODUCER_POLL_S, PRODUCER_IDLE_S = 0.05, 0.5
"""Seconds between two looks for delivery reports while somebody waits for one, and else: then for errors alone."""
DIRECT_POLL_S = 0.01
"""The same for what is sent outside of events: somebody waits for it."""
DIRECT_TIMEOUT_MS = 30_000
"""message.timeout.ms of what is sent outside of events: then it has failed, and says so."""
FLUSH_S = 5.0
"""Seconds that a stopping producer waits for what was sent outside of events and nobody has awaited."""
Sent = asyncio.Future[RecordMetadata]
Report = tuple[Sent, bool, KafkaError | None, Message]
"""What `send` has returned, whether it was sent outside of events, and what became of it."""


class Producer(FaustProducer):
    """Faust's producer interface.

    Inside (an agent, a stream): over the worker's transaction. A record is there when the slice is committed, or never was;
    awaiting what `send` returns waits for the broker, not for the commit.

    Outside (a timer, a page, a task, a command, a program without a worker): a producer of its own, idempotent, without a
    transaction and without a state directory. What `send` returns is done when all replicas have the record: then every
    reader has it. It raises TransientError when that is not known in time.
    """

    transport: BaseTransport
    transaction: Transaction

    def __post_init__(self) -> None:
        """Take the transport's transaction."""
        self.transaction = self.transport.transaction
        self._waiting = self._unreported = self._direct_unreported = 0
        self._sent = asyncio.Event()
        self._reports: deque[Report] = deque()
        self._is_woken = False
        self._direct: RdProducer | None = None
        self._counts: dict[str, int] = {}
        self._home: asyncio.AbstractEventLoop
        """The event loop of the process; once it is started."""

    async def on_start(self) -> None:
        """Serve delivery reports."""
        await super().on_start()
        self._home = asyncio.get_running_loop()
        self.add_future(self._serve_reports())

    async def claim(self) -> None:
        """Claim the transactional ID, for what agents send."""
        try:
            await self.transaction.run(self.transaction.start)
        except HeadwaterError as error:
            stop_process(error.message, hint=error.hint)
        except KafkaException as error:
            stop_process(f"no transactional producer: {error.args[0]}", hint="headwater check")

    async def on_stop(self) -> None:
        """Wait for what was sent outside of events."""
        if self._direct is not None:
            left = await asyncio.to_thread(self._direct.flush, FLUSH_S)
            self._take_reports()
            if left:
                log.error("%d records that were sent outside of agents were not delivered when the process ended", left)

    async def _serve_reports(self) -> None:
        while not self.should_stop:
            self.serve()
            self._take_reports()
            if self._direct_unreported:
                await asyncio.sleep(DIRECT_POLL_S)
            elif self._unreported:
                await asyncio.sleep(PRODUCER_POLL_S)
            else:
                self._sent.clear()
                await wait_at_most(self._sent, PRODUCER_IDLE_S)

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> Awaitable[RecordMetadata]:
        """Send a record: see the class. Raises RejectedError for one that can never be written."""
        while True:
            if self.transaction.is_started and is_inside():
                await self.transaction.idle.wait()
            try:
                return self.write(topic, key, value, partition, timestamp, headers)
            except BufferError:
                inside = is_inside()
                self._waiting += inside  # the slice ends after it
                try:
                    self.serve()
                    await asyncio.sleep(0.01)
                finally:
                    self._waiting -= inside

    def write(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: Any = None,
    ) -> Sent:
        """Send a record at once; the future is done when the broker has it. Raises BufferError when there is no room.

        Not while a commit is under way: see `is_ready`.
        """
        future: Sent = self._home.create_future()
        extra: dict[str, Any] = {"timestamp": int(timestamp * 1000)} if timestamp else {}
        if headers:
            extra["headers"] = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        if partition is None:
            partition = self._chosen(topic, key)
        inside = self.transaction.is_started and is_inside()
        report = partial(self._report, future, not inside)
        if inside and (refused := self.transaction.reports()) is not None:
            report = partial(_both, refused, report)
        producer = self.transaction.begin() if inside else self._direct_producer()
        try:
            producer.produce(topic, value, key, partition, on_delivery=report, **extra)
        except KafkaException as error:
            if error.args[0].code() in NEVER_TAKEN:
                raise too_bad(error.args[0], topic, key, value) from error
            if not inside:
                raise
            self.transaction.spoil_or_raise(error)
            future.set_exception(error)
            future.exception()  # nobody has to ask: the slice is processed again
            return future
        if inside:
            self._unreported += 1
        else:
            self._direct_unreported += 1
        self._sent.set()
        return future

    @property
    def is_ready(self) -> bool:
        """Whether `write` may be called now."""
        return self.transaction.idle.is_set() or not is_inside()

    def _direct_producer(self) -> RdProducer:
        if self._direct is None:
            conf = {"message.timeout.ms": DIRECT_TIMEOUT_MS, **self.transport.producer_conf()}
            self._direct = clients.producer(conf)
        return self._direct

    def _chosen(self, topic: str, key: bytes | None) -> int:
        """Return the partition that the app's own partitioner chooses; -1: librdkafka chooses, as Java clients do."""
        if (choose := cast("Any", self.partitioner)) is None:
            return -1
        numbers = list(range(self._count(topic)))
        return int(choose(key, numbers, numbers))

    def serve(self) -> None:
        """Serve delivery reports now."""
        if self.transaction.is_started:
            self.transaction.serve()
        if self._direct is not None:
            self._direct.poll(0)

    def _report(self, future: Sent, is_direct: bool, error: KafkaError | None, message: Message) -> None:
        """Take a report, in any thread: the event loop is woken once for many.

        No lock: a fatal error of librdkafka is raised in here, at any line, and would leave it locked (see
        `Transaction._flushed`). What that skips is taken by `_serve_reports`.
        """
        self._reports.append((future, is_direct, error, message))
        if not self._is_woken:
            self._is_woken = True
            self._home.call_soon_threadsafe(self._take_reports)

    def _take_reports(self) -> None:
        self._is_woken = False
        while self._reports:
            future, is_direct, error, message = self._reports.popleft()
            if is_direct:
                self._direct_unreported -= 1
            else:
                self._unreported -= 1
            topic, partition = cast("str", message.topic()), cast("int", message.partition())
            if error is not None and is_direct:
                log.error("%s", _not_there(error, topic))
            if future.done():
                continue
            if error is not None:
                future.set_exception(_not_there(error, topic) if is_direct else KafkaException(error))
                continue
            kind, time_ms = message.timestamp()
            offset = cast("int", message.offset())
            future.set_result(RecordMetadata(topic, partition, TP(topic, partition), offset, time_ms / 1000, kind))

    def send_soon(self, fut: FutureMessage) -> None:
        """Send what synchronous code sends, for instance the changelog of a table: at once, unless a commit is under way."""
        if self.is_ready:
            try:
                self._publish(fut)
            except BufferError:
                pass
            else:
                return
        inside = is_inside()
        self._waiting += inside  # the slice ends after it
        self.add_future(self._send_later(fut, inside))

    async def _send_later(self, fut: FutureMessage, inside: bool) -> None:
        """Send when there is room; a task has the context of who has started it, so what was inside stays inside."""
        try:
            while True:
                if inside:
                    await self.transaction.idle.wait()
                try:
                    self._publish(fut)
                except BufferError:
                    self.serve()
                    await asyncio.sleep(0.01)
                else:
                    return
        finally:
            self._waiting -= inside

    def _publish(self, fut: FutureMessage) -> None:
        message, channel = fut.message, cast("Any", fut.message.channel)
        topic, key, value = channel.get_topic_name(), cast("bytes", message.key), cast("bytes", message.value)
        state = self.app.sensors.on_send_initiated(self, topic, message, len(key or b""), len(value or b""))
        sent = self.write(topic, key, value, message.partition, message.timestamp, message.headers)
        sent.add_done_callback(partial(completed, self.app.sensors, self, state))
        sent.add_done_callback(partial(_settle, fut))

    async def send_and_wait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> RecordMetadata:
        """Send, and wait until the broker has it."""
        return await (await self.send(topic, key, value, partition, timestamp, headers))

    async def flush(self) -> None:
        """Hand all that waits to librdkafka."""
        while self._waiting:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """Create a topic if it is missing."""
        await self.transport.create_topic(topic, partitions, replication, **options)

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Return the partition of a key, as Java clients compute it."""
        return TP(topic, partition_of(key, self._count(topic)))

    def _count(self, topic: str) -> int:
        """Return the number of partitions of a topic; asked once."""
        if topic not in self._counts:
            found = clients.admin(self.transport.client_conf()).list_topics(topic, 10).topics[topic]
            if not found.partitions:
                raise TransientError(f"the topic {topic} is not there, or the broker does not know it yet")
            self._counts[topic] = len(found.partitions)
        return self._counts[topic]

    def supports_headers(self) -> bool:
        """Headers are kept."""
        return True


def completed(sensors: Any, producer: FaustProducer, state: Any, sent: Sent) -> None:
    """Tell the sensors what became of a record."""
    if sent.cancelled():
        return
    with suppress(KeyError):  # a sensor that was added after the record was sent
        if (error := sent.exception()) is not None:
            sensors.on_send_error(producer, error, state)
        else:
            sensors.on_send_completed(producer, state, sent.result())


def _settle(fut: FutureMessage, sent: Sent) -> None:
    """Do as Faust does for a record that synchronous code has sent."""
    if fut.done() or sent.cancelled():
        return
    if (error := sent.exception()) is not None:
        fut.set_exception(error)
        fut.exception()  # nobody has to ask
        return
    fut.set_result(sent.result())
    if fut.message.callback:
        fut.message.callback(fut)


def _both(
    refused: Callable[..., None], report: Callable[..., None], error: KafkaError | None, message: Message
) -> None:
    refused(error, message)
    report(error, message)


def _not_there(error: KafkaError, topic: str) -> HeadwaterError:
    """Return the error for a record that was sent outside of events and did not arrive."""
    if error.code() in NEVER_TAKEN:
        return too_bad(error, topic, None, None)
    return TransientError(
        f"a record for the topic {topic} was not delivered: {error.str()}",
        hint=f"is the broker there, and the topic? kafka-topics.sh --describe --topic {topic}",
    )
