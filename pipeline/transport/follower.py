"""Follows a whole topic outside the consumer group: a copy of a compacted topic on every worker."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Consumer as RdConsumer

from pipeline.transport import clients
from pipeline.transport.fatal import stop_process
from pipeline.transport.logs import UNKNOWN, Log, logs_of

log = logging.getLogger(__name__)

QUIET_S = 30.0
"""Seconds without a record after which the consumer is recreated: one was seen that did not come back after a broker's
restart, and from outside it looks like a quiet topic."""


class Follower:
    """Reads all partitions of a topic, committed records only, in a thread of its own.

    `apply(records)` is called in that thread with the records of one fetch, any partitions. `reached[p]` is the offset up to
    which partition p has been applied; ends of transactions count, so it reaches the end of a topic that is quiet.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        topic: str,
        apply: Callable[[list[Message]], None],
        *,
        start_at: Mapping[int, int] | None = None,
        quiet: float = QUIET_S,
        log_of: Callable[[str], Log] = lambda _topic: UNKNOWN,
    ) -> None:
        """`start_at`: offsets to read on from, of the log that `log_of` names; without them all of the topic is read."""
        self.topic = topic
        self.reached: dict[int, int] = {}
        self._apply = apply
        self._start_at, self._quiet = dict(start_at or {}), quiet
        self._conf, self._log_of = dict(conf), log_of
        self._log = UNKNOWN
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{topic}", daemon=True)

    def start(self) -> None:
        """Start to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to read; returns when the last fetch has been applied."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)

    async def wait_until(self, ends: Mapping[int, int]) -> None:
        """Wait until every partition has been applied up to its end."""
        while any(self.reached.get(partition, 0) < end for partition, end in ends.items()):
            await asyncio.sleep(0.02)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                consumer = clients.consumer(  # the group is never joined and never committed: librdkafka wants a name
                    self._conf, f"{self.topic}.follower", enable_partition_eof=True, fetch_wait_max_ms=100
                )
                self._follow(consumer)
                consumer.close()
        except Exception as error:  # noqa: BLE001 - without its copy of the topic the worker would work on old data
            stop_process(f"reading the topic {self.topic} failed: {error!r}")

    def _follow(self, consumer: RdConsumer) -> None:
        """Read on from where the last consumer was, until there is nothing for a long time."""
        at = {**self._start_at, **self.reached}
        partitions = self._wait_for_partitions(consumer)
        consumer.assign([TopicPartition(self.topic, p, at.get(p, OFFSET_BEGINNING)) for p in partitions])
        heard = time.monotonic()
        self._require_same()
        while not self._stopping.is_set() and time.monotonic() < heard + self._quiet:
            message = consumer.poll(0.1)
            if message is not None:
                self._take([message, *consumer.consume(5_000, 0)])
                heard = time.monotonic()

    def _require_same(self) -> None:
        """Stop the worker when the topic is not the one any more that was read so far."""
        client = clients.admin(self._conf)
        with suppress(KafkaException):  # the broker is away: the next look will tell
            now = logs_of(client, [self.topic]).get(self.topic, UNKNOWN)
            before = self._log if self._log != UNKNOWN else self._log_of(self.topic)
            if not before.may_be(now):
                stop_process(
                    f"the topic {self.topic} changed while this worker ran: {before.difference(now)}",
                    hint="start the worker again: it reads the topic again",
                )
            self._log = now

    def _wait_for_partitions(self, consumer: RdConsumer) -> Iterable[int]:
        deadline = time.monotonic() + 60
        while True:
            with suppress(KafkaException):  # the broker is away; it may come back
                topic = consumer.list_topics(self.topic, 5).topics[self.topic]
                if topic.error is None and topic.partitions:
                    return sorted(topic.partitions)
            if self._stopping.is_set():
                return []
            if time.monotonic() > deadline:
                stop_process(f"the topic {self.topic} is not there, or no broker is", hint="headwater topics --create")
            self._stopping.wait(0.2)

    def _take(self, messages: list[Message]) -> None:
        records = []
        reached: dict[int, int] = {}
        for message in messages:
            error, at = message.error(), cast("int", message.offset())
            if error is None:
                records.append(message)
                reached[cast("int", message.partition())] = at + 1
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the documented name of the code
                reached[cast("int", message.partition())] = at
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
                stop_process(
                    f"{self.topic}[{message.partition()}] no longer has the offset {at}: records of it were deleted, or it was "
                    "recreated",
                    hint="start the worker again: it reads the topic again",
                )
            else:
                log.warning("reading %s: %s", self.topic, error)
        if records:
            self._apply(records)
        self.reached.update(reached)
