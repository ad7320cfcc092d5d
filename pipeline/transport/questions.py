"""Questions to the broker beside the consumer: committed offsets, watermarks, metadata.

Each question has a handle of its own for as long as it lasts: a committed offset that is pending in a transaction is waited
for (16 s were seen), and must not keep another partition's question waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from faust.types import TP

T = TypeVar("T")
TIMEOUT = 60.0
PAUSE = 0.1
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
}
"""What passes by itself: a coordinator or a leader that has moved, or a broker that is away."""


class Questions:
    """Asks with the group's name, without being a member."""

    def __init__(self, conf: Mapping[str, Any], group: str) -> None:
        self._conf = {**conf, "group.id": group, "enable.auto.commit": False}

    async def committed(self, tp: TP) -> int | None:
        """Return the STABLE committed offset, None if the group never committed.

        A transaction that has sent offsets for the partition and is not decided yet is waited for.
        """
        answers = await self._ask(lambda rd: rd.committed([TopicPartition(*tp)], TIMEOUT))
        offset = int(answers[0].offset)
        return offset if offset >= 0 else None

    async def watermarks(self, tps: Iterable[TP], *, isolation: str = "read_committed") -> dict[TP, tuple[int, int]]:
        """Return for each partition the first offset and the end; a read_committed end is before open transactions."""
        return await self._ask(
            lambda rd: {tp: rd.get_watermark_offsets(TopicPartition(*tp), TIMEOUT) for tp in tps}, isolation=isolation
        )

    async def end(self, tp: TP) -> int:
        """Return the end of a partition, undecided transactions included."""
        return (await self.watermarks([tp], isolation="read_uncommitted"))[tp][1]

    async def partitions(self, topic: str) -> int:
        """Return the number of partitions of a topic, 0 if there is no such topic."""
        metadata = await self._ask(lambda rd: rd.list_topics(topic, TIMEOUT).topics[topic])
        return 0 if metadata.error is not None else len(metadata.partitions)

    async def missing(self, topics: Iterable[str]) -> list[str]:
        """Return those of the topics that do not exist."""
        there = await self._ask(lambda rd: rd.list_topics(timeout=TIMEOUT).topics)
        return sorted(topic for topic in topics if topic not in there)

    async def _ask(self, question: Callable[[RdConsumer], T], *, isolation: str = "read_committed") -> T:
        def ask() -> T:
            consumer = RdConsumer({**self._conf, "isolation.level": isolation})
            try:
                return question(consumer)
            finally:
                consumer.close()

        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                return await asyncio.to_thread(ask)
            except KafkaException as error:  # a broker that has just started answers so for a moment
                if error.args[0].code() not in TRY_AGAIN or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(PAUSE)
