"""Questions to the broker beside the consumer: committed offsets, watermarks, metadata.

Each question has a handle of its own for as long as it lasts: a committed offset that is pending in a transaction is waited
for (16 s were seen), and must not keep another partition's question waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # the stub forgets
from faust.types import TP

from pipeline.errors import FatalError
from pipeline.retry import kafka_says, within_async
from pipeline.transport import clients
from pipeline.transport.committed import Committed
from pipeline.transport.committed import committed as committed_offsets
from pipeline.transport.logs import UNKNOWN, Log, logs_of
from pipeline.transport.starts import PartitionState

T = TypeVar("T")
QUESTIONS_TIMEOUT_S = 60.0
QUESTIONS_ATTEMPT_S = 10.0
"""Seconds of one attempt at what is asked of an admin client: after the death of a broker one was seen that never answers."""
PAUSE = 0.1
EARLIEST, LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
TRY_AGAIN = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError._TRANSPORT,  # noqa: SLF001 - the documented name of the code
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._WAIT_COORD,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    KafkaError._DESTROY_BROKER,  # noqa: SLF001
    KafkaError._TIMED_OUT,  # noqa: SLF001
    KafkaError._TIMED_OUT_QUEUE,  # noqa: SLF001
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.REBALANCE_IN_PROGRESS,
}
"""What passes by itself: a coordinator or a leader that has moved, or a broker that is away."""


class Questions:
    """Asks with the group's name, without being a member."""

    def __init__(self, conf: Mapping[str, Any], group: str) -> None:
        self._conf, self._group = dict(conf), group
        self._admin: AdminClient | None = None

    async def there(self, tps: Collection[TP]) -> dict[TP, PartitionState]:
        """Return what is there of partitions: committed offset, log, ends. A pending offset is not waited for."""
        return await self._try(lambda: self._there(tps))

    def _there(self, tps: Collection[TP]) -> dict[TP, PartitionState]:
        client = self._client()
        found = committed_offsets(client, self._group, tps, timeout=QUESTIONS_ATTEMPT_S, patience=QUESTIONS_ATTEMPT_S)
        logs = logs_of(client, {tp.topic for tp in tps}, timeout=QUESTIONS_ATTEMPT_S)
        lows, ends = (
            offsets_of(client, tps, EARLIEST, QUESTIONS_ATTEMPT_S),
            offsets_of(client, tps, LATEST, QUESTIONS_ATTEMPT_S),
        )
        return {
            tp: PartitionState(found.get(tp, Committed(None)), logs.get(tp.topic, UNKNOWN), lows[tp], ends[tp])
            for tp in tps
        }

    async def logs(self, topics: Collection[str]) -> dict[str, Log]:
        """Return the logs of the topics that exist, by name."""
        return await self._try(lambda: logs_of(self._client(), topics, timeout=QUESTIONS_ATTEMPT_S))

    async def positions(self, tps: Collection[TP]) -> dict[TP, Committed]:
        """Return the STABLE committed offsets with their logs: transactions that are not decided are waited for.

        Raises FatalError when one is not decided for a minute: the broker ends them much sooner.
        """
        deadline = time.monotonic() + QUESTIONS_TIMEOUT_S
        while True:
            found = await self._try(
                lambda: committed_offsets(
                    self._client(), self._group, tps, timeout=QUESTIONS_ATTEMPT_S, patience=QUESTIONS_ATTEMPT_S
                )
            )
            undecided = [tp for tp, one in found.items() if not one.is_stable]
            if not undecided:
                return found
            if time.monotonic() > deadline:
                (tp, *_) = undecided
                raise FatalError(
                    f"a transaction with an offset of {tp.topic}[{tp.partition}] is not decided "
                    f"after {QUESTIONS_TIMEOUT_S:.0f} s",
                    hint="headwater check; does the broker's transaction coordinator answer?",
                )
            await asyncio.sleep(PAUSE)

    def _client(self) -> AdminClient:
        if self._admin is None:
            self._admin = clients.admin(self._conf)
        return self._admin

    async def committed(self, tp: TP) -> int | None:
        """Return the STABLE committed offset, None if the group never committed.

        A transaction that has sent offsets for the partition and is not decided yet is waited for.
        """
        answers = await self._ask(lambda rd: rd.committed([TopicPartition(*tp)], QUESTIONS_TIMEOUT_S))
        offset = int(answers[0].offset)
        return offset if offset >= 0 else None

    async def watermarks(self, tps: Iterable[TP], *, isolation: str = "read_committed") -> dict[TP, tuple[int, int]]:
        """Return for each partition the first offset and the end; a read_committed end is before open transactions."""
        return await self._ask(
            lambda rd: {tp: rd.get_watermark_offsets(TopicPartition(*tp), QUESTIONS_TIMEOUT_S) for tp in tps},
            isolation=isolation,
        )

    async def end(self, tp: TP) -> int:
        """Return the end of a partition, undecided transactions included."""
        return (await self.watermarks([tp], isolation="read_uncommitted"))[tp][1]

    async def partitions(self, topic: str) -> int:
        """Return the number of partitions of a topic, 0 if there is no such topic."""
        metadata = await self._ask(lambda rd: rd.list_topics(topic, QUESTIONS_TIMEOUT_S).topics[topic])
        return 0 if metadata.error is not None else len(metadata.partitions)

    async def missing(self, topics: Iterable[str]) -> list[str]:
        """Return those of the topics that do not exist."""
        there = await self._ask(lambda rd: rd.list_topics(timeout=QUESTIONS_TIMEOUT_S).topics)
        return sorted(topic for topic in topics if topic not in there)

    async def _ask(self, question: Callable[[RdConsumer], T], *, isolation: str = "read_committed") -> T:
        def ask() -> T:
            consumer = clients.consumer(self._conf, self._group, isolation_level=isolation)
            try:
                return question(consumer)
            finally:
                consumer.close()

        return await self._try(ask)

    async def _try(self, ask: Callable[[], T]) -> T:
        async def attempt() -> T:
            try:
                return await asyncio.to_thread(ask)
            except KafkaException:
                self._admin = None  # the next attempt is made with another
                raise

        # A broker that has just started answers so for a moment.
        return await within_async(QUESTIONS_TIMEOUT_S, kafka_says(TRY_AGAIN))(attempt)


def offsets_of(
    client: AdminClient, tps: Iterable[TP], spec: OffsetSpec, timeout: float = QUESTIONS_TIMEOUT_S
) -> dict[TP, int]:
    """Return the first offsets of partitions (EARLIEST) or their ends, undecided transactions included (LATEST); blocks."""
    asked = client.list_offsets({TopicPartition(*tp): spec for tp in tps}, request_timeout=timeout)
    return {TP(at.topic, at.partition): int(future.result(timeout + 1).offset) for at, future in asked.items()}
