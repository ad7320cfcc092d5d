"""Reading partitions from other offsets on: the others stay where they are, though all are assigned anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from confluent_kafka import OFFSET_INVALID, TopicPartition
from faust.types import TP

from pipeline.transport.backlog import Backlog
from pipeline.transport.reader import Reader

A, B, C = (TP("t", partition) for partition in range(3))


class Assigned:
    """What librdkafka does with an assignment: a position is known once something was read."""

    def __init__(self) -> None:
        self.at: dict[TP, int] = {}
        self.read: dict[TP, int] = {}

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self.at, self.read = {TP(p.topic, p.partition): p.offset for p in partitions}, {}

    def position(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        return [
            TopicPartition(p.topic, p.partition, self.read.get(TP(p.topic, p.partition), OFFSET_INVALID))
            for p in partitions
        ]

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing was paused."""


def test_partitions_that_were_not_read_between_two_restarts_do_not_go_back_to_where_they_began() -> None:
    nothing: Any = None
    reader = Reader(
        {},
        Backlog(),
        incremental=False,
        from_beginning=nothing,
        never_read=nothing,
        on_records=nothing,
        on_end=nothing,
        on_gone=nothing,
        starts=nothing,
        rebalance=nothing,
    )
    assigned = Assigned()
    consumer = cast("Any", assigned)
    reader._from = {A: 10, B: 20, C: 30}
    assigned.read = {B: 25}
    reader._restart(consumer, {A: 15})
    assert assigned.at == {A: 15, B: 25, C: 30}
    reader._restart(consumer, {C: 35})
    assert assigned.at == {A: 15, B: 25, C: 35}
