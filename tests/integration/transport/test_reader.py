"""The reader of the group: partitions that begin late, or again, in quick succession. On a real broker."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from confluent_kafka import Message, Producer
from faust.types import TP

from headwater.lab.stack import Endpoints
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic
from pipeline.transport.backlog import Backlog
from pipeline.transport.reader import Reader

pytestmark = pytest.mark.kafka
PARTITIONS, RECORDS, FENCE = 4, 5_000, "-fence"
BEGIN = {0: 56, 1: 112, 2: 119, 3: 2_500}
CONF: dict[str, Any] = {
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "fetch.wait.max.ms": 50,
    "fetch.error.backoff.ms": 20,
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "classic": {"partition.assignment.strategy": "range"},
    "consumer": {"group.protocol": "consumer", "group.remote.assignor": "range"},
}


@pytest.fixture(scope="module")
def topic(stack: Endpoints) -> str:
    """Return a topic with records in each partition, and a fence beside it."""
    name = f"t{uuid.uuid4().hex[:8]}"
    conf = {"bootstrap.servers": stack.bootstrap_servers}
    ensure(admin(conf), [Topic(name + end, PARTITIONS, "a topic", {}) for end in ("", FENCE)], 1)
    producer = Producer({**conf, "linger.ms": 5})
    for number in range(PARTITIONS * RECORDS):
        producer.produce(name, b"x" * 500, None, number % PARTITIONS)
        producer.poll(0)
    assert producer.flush(30) == 0
    return name


class Reading:
    """A reader, and what it has handed over."""

    def __init__(self, conf: Mapping[str, Any], topic: str, late: str, *, incremental: bool) -> None:
        self.topic, self.late = topic, late
        self.next = dict(BEGIN)
        self.wrong: list[tuple[int, int, int]] = []
        """Partition, the offset that was to come, and the one that came."""
        self.gone: list[int] = []
        self.assigned = asyncio.Event()
        self.reader = Reader(
            conf,
            Backlog(),
            incremental=incremental,
            never_read=lambda name: name.endswith(FENCE),
            on_records=self.take,
            on_end=lambda _tp, _offset: None,
            on_gone=lambda tp, _offset: self.gone.append(tp.partition),
            starts=self.starts,
            rebalance=self.rebalance,
        )

    def take(self, runs: list[tuple[TP, list[Message], int]]) -> None:
        for tp, records, _ in runs:
            for record in records:
                if record.offset() != self.next[tp.partition]:
                    self.wrong.append((tp.partition, self.next[tp.partition], record.offset() or 0))
                self.next[tp.partition] = (record.offset() or 0) + 1

    async def starts(self, tps: set[TP]) -> dict[TP, int]:
        """Return where partitions begin; the first two of them are not known yet, or an offset that is not there."""
        found = {tp: BEGIN[tp.partition] for tp in tps if tp.partition > 1}
        return found | ({tp: 10 * RECORDS for tp in tps if tp.partition <= 1} if self.late == "gone" else {})

    async def rebalance(self, new: set[TP], gone: set[TP], lost: bool) -> None:
        self.assigned.set()

    async def begin(self, partition: int) -> None:
        while not await self.reader.restart(TP(self.topic, partition), BEGIN[partition], lambda: True):
            await asyncio.sleep(0.01)  # the assignment is not there yet

    async def is_through(self) -> bool:
        """Wait until all is read; False when nothing more comes."""
        for _ in range(500):
            if all(at == RECORDS for at in self.next.values()):
                return True
            await asyncio.sleep(0.01)  # between two looks
        return False


@pytest.mark.parametrize("late", ["undecided", "gone"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_partitions_that_begin_late_one_after_the_other_miss_nothing(
    stack: Endpoints, topic: str, protocol: str, late: str
) -> None:
    conf = {**CONF, **PROTOCOLS[protocol], "bootstrap.servers": stack.bootstrap_servers}

    async def read(seed: int) -> Reading:
        pause = random.Random(seed).random  # noqa: S311 - no secret
        conf["group.id"] = uuid.uuid4().hex
        reading = Reading(conf, topic, late, incremental=protocol == "consumer")
        reading.reader.start()
        await reading.reader.subscribe([topic, topic + FENCE])
        await reading.assigned.wait()
        while late == "gone" and len(reading.gone) < 2:
            await asyncio.sleep(0.01)
        for partition in (0, 1):
            await reading.begin(partition)
            await asyncio.sleep(pause() * 0.03)  # whatever it is
        through = await reading.is_through()
        await reading.reader.close()
        assert through, (seed, reading.next)
        return reading

    for seed in range(8):
        reading = asyncio.run(read(seed))
        assert not reading.wrong
        assert sorted(reading.gone) == ([0, 1] if late == "gone" else []), "each is told once"
