"""What Faust sends with: `topic.send`, changelogs of `app.Table`. All of it goes into the slice's transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message
from faust.transport.producer import Producer as FaustProducer
from faust.types import TP, RecordMetadata

from pipeline.errors import HeadwaterError
from pipeline.limits import NEVER_TAKEN
from pipeline.transport.alarm import wait_at_most
from pipeline.transport.base import BaseTransport
from pipeline.transport.fatal import stop_process
from pipeline.transport.partition import partition_of
from pipeline.transport.transaction import Transaction, too_bad

PRODUCER_POLL_S, PRODUCER_IDLE_S = 0.05, 0.5
"""Seconds between two looks for delivery reports while somebody waits for one, and else: then for errors alone."""


class Producer(FaustProducer):
    """Faust's producer interface over the worker's transaction."""

    transport: BaseTransport
    transaction: Transaction

    def __post_init__(self) -> None:
        """Take the transport's transaction."""
        self.transaction = self.transport.transaction
        self._waiting = self._unreported = 0
        self._sent = asyncio.Event()

    async def on_start(self) -> None:
        """Claim the transactional ID, then serve delivery reports."""
        await super().on_start()
        try:
            await self.transaction.run(self.transaction.start)
        except HeadwaterError as error:
            stop_process(error.message, hint=error.hint)
        except KafkaException as error:
            stop_process(f"no transactional producer: {error.args[0]}", hint="headwater check")
        self.add_future(self._serve_reports())

    async def _serve_reports(self) -> None:
        while not self.should_stop:
            self.transaction.serve()
            if self._unreported:
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
        """Put a record into the open transaction; the future is done when the broker has it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RecordMetadata] = loop.create_future()

        def report(error: KafkaError | None, message: Message) -> None:
            if reports is not None:
                reports(error, message)
            loop.call_soon_threadsafe(self._delivered, future, error, message)

        reports = self.transaction.reports()
        extra: dict[str, Any] = {"timestamp": int(timestamp * 1000)} if timestamp else {}
        if headers:
            extra["headers"] = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        while True:
            await self.transaction.idle.wait()
            producer = self.transaction.begin()
            try:
                producer.produce(topic, value, key, -1 if partition is None else partition, on_delivery=report, **extra)
            except BufferError:
                self._waiting += 1  # the slice ends after it
                self.transaction.serve()
                await asyncio.sleep(0.01)
                self._waiting -= 1
            except KafkaException as error:
                if error.args[0].code() in NEVER_TAKEN:
                    raise too_bad(error.args[0], topic, key, value) from error
                self.transaction.spoil_or_raise(error)
                future.set_exception(error)
                future.exception()  # nobody has to ask: the slice is processed again
                return future
            else:
                self._unreported += 1
                self._sent.set()
                return future

    def _delivered(self, future: asyncio.Future[RecordMetadata], error: KafkaError | None, message: Message) -> None:
        self._unreported -= 1
        if future.done():
            return
        if error is not None:
            future.set_exception(KafkaException(error))
            return
        topic, partition = cast("str", message.topic()), cast("int", message.partition())
        future.set_result(RecordMetadata(topic, partition, TP(topic, partition), cast("int", message.offset())))

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
        """Hand all that Faust has buffered to librdkafka (Faust's own flush gives up after 0.1 s)."""
        while self.buffer.size or self._waiting:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """Create a topic if it is missing."""
        await self.transport.create_topic(topic, partitions, replication, **options)

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Return the partition of a key, as Java clients compute it."""
        count = len(self.transaction.producer.list_topics(topic, 10).topics[topic].partitions)
        return TP(topic, partition_of(key, count))

    def supports_headers(self) -> bool:
        """Headers are kept."""
        return True
