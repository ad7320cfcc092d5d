"""Reading partitions from other offsets on: the others stay where they are, though all are assigned anew."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
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

    def incremental_assign(self, partitions: Sequence[TopicPartition]) -> None:
        new = {TP(p.topic, p.partition): p.offset for p in partitions}
        assert not new.keys() & self.at.keys()
        self.at |= new

    def incremental_unassign(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            del self.at[TP(partition.topic, partition.partition)]

    def position(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        return [
            TopicPartition(p.topic, p.partition, self.read.get(TP(p.topic, p.partition), OFFSET_INVALID))
            for p in partitions
        ]

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing was paused."""


@pytest.fixture(params=[False, True], ids=["whole", "incremental"])
def reader(request: pytest.FixtureRequest) -> Reader:
    return reader_of(incremental=request.param)


def reader_of(*, incremental: bool) -> Reader:
    nothing: Any = None
    reader = Reader(
        {},
        Backlog(),
        incremental=incremental,
        never_read=nothing,
        on_records=nothing,
        on_end=nothing,
        on_gone=nothing,
        starts=nothing,
        rebalance=nothing,
    )
    reader._owned = {A, B, C}
    return reader


def test_partitions_that_were_not_read_between_two_restarts_do_not_go_back_to_where_they_began() -> None:
    reader = reader_of(incremental=False)  # else the others are not touched
    assigned = Assigned()
    consumer = cast("Any", assigned)
    reader._from = {A: 10, B: 20, C: 30}
    assigned.read = {B: 25}
    reader._restart(consumer, {A: 15})
    assert assigned.at == {A: 15, B: 25, C: 30}
    reader._restart(consumer, {C: 35})
    assert assigned.at == {A: 15, B: 25, C: 35}


def test_what_has_no_offset_yet_is_not_assigned(reader: Reader) -> None:
    assigned = Assigned()
    consumer = cast("Any", assigned)
    reader._restart(consumer, {A: 15})
    assert assigned.at == {A: 15}
    assert reader._restart(consumer, {C: 35})
    assert not reader._restart(consumer, {TP("t", 9): 1})  # it is not this worker's
    assert assigned.at == {A: 15, C: 35}


def test_of_two_partitions_that_retention_has_overtaken_each_is_reported_once_and_read_on_by_itself(
    reader: Reader,
) -> None:
    told: list[tuple[TP, int]] = []
    loop = cast("Any", SimpleNamespace(call_soon_threadsafe=lambda _told, tp, offset: told.append((tp, offset))))
    reader._loop = loop
    assigned = Assigned()
    consumer = cast("Any", assigned)
    reader._restart(consumer, {A: 10, B: 20, C: 30})
    for tp in (A, B, A):
        reader._is_gone(consumer, tp, 5)
    assert told == [(A, 5), (B, 5)]
    reader._restart(consumer, {A: 15})
    assert assigned.at == {A: 15, C: 30}
    reader._restart(consumer, {B: 25})
    assert assigned.at == {A: 15, B: 25, C: 30}
