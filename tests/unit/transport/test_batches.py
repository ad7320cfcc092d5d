"""Batches, the backlog that they are taken from, and how a poisoned record in one is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import Message
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as some

from pipeline.transport import backlog as backlogs
from pipeline.transport.backlog import Backlog, size_of
from pipeline.transport.batch import Batch
from pipeline.transport.participant import Slice
from pipeline.transport.poison import POISONED_IN_A_ROW, Poison

A, B = TP("t", 0), TP("t", 1)
MUCH = 1 << 30


def everything(_: TP) -> bool:
    return True


def records(*values: bytes | None, first: int = 0) -> list[Message]:
    """Return records with every second offset, as if the others were markers of transactions."""
    return [
        Message(topic="t", partition=0, offset=first + 2 * n, key=b"k%d" % n, value=value, timestamp=(1, 1000 + n))
        for n, value in enumerate(values)
    ]


def add(backlog: Backlog, tp: TP, run: list[Message]) -> None:
    backlog.add(tp, run, size_of(run))


def values(taken: tuple[list[Any], int]) -> list[bytes]:
    return [record.value() for record in taken[0]]


def test_partitions_take_turns() -> None:
    backlog = Backlog()
    add(backlog, A, records(b"1", b"2", b"3"))
    add(backlog, B, records(b"1", b"2", b"3"))
    order = []
    while (tp := backlog.next(everything)) is not None:
        order.append(tp)
        backlog.take(tp, 1, MUCH)
    assert order == [A, B, A, B, A, B]


def test_to_ask_whether_there_is_work_takes_nobodys_turn() -> None:
    backlog = Backlog()
    add(backlog, A, records(b"1"))
    add(backlog, B, records(b"1"))
    assert backlog.next(everything) == A
    assert backlog.any(everything)
    assert backlog.next(everything) == B


def test_what_is_given_back_comes_first_and_in_order() -> None:
    backlog = Backlog()
    add(backlog, A, records(b"1", b"2", b"3", b"4"))
    taken, _ = backlog.take(A, 2, MUCH)
    backlog.give_back(A, taken)
    assert values(backlog.take(A, 10, MUCH)) == [b"1", b"2", b"3", b"4"]


@given(
    some.lists(some.lists(some.binary(max_size=9), min_size=1, max_size=8)), some.integers(1, 9), some.integers(0, 20)
)
def test_a_backlog_gives_what_it_was_given_in_order_within_its_bounds(
    runs: list[list[bytes]], most: int, most_bytes: int
) -> None:
    backlog, found = Backlog(), []
    for run in runs:
        add(backlog, A, records(*run))
    while backlog.any(everything):
        taken, size = backlog.take(A, most, most_bytes)
        assert 1 <= len(taken) <= most
        assert size == sum(len(record) for record in taken)
        assert size <= most_bytes or len(taken) == 1
        found += values((taken, size))
    assert found == [value for run in runs for value in run]
    backlog.measure()
    assert backlog.has_room.is_set()


def test_held_partitions_that_hold_much_together_are_all_paused_until_half_of_it_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backlogs, "PARTITION_BYTES", 10)
    backlog = Backlog()
    idle, other = TP("t", 2), TP("t", 3)
    backlog.held = {A: {"lake"}, B: {"lake"}, idle: {"lake"}}
    for tp in (A, B, other):
        add(backlog, tp, records(b"1", b"2", b"3", b"4"))
    backlog.measure()
    assert not backlog.paused
    add(backlog, idle, records(b"1", b"2", b"3", b"4"))
    backlog.measure()
    assert backlog.paused == {A, B, idle}  # twelve bytes of more than ten
    del backlog.held[A]
    backlog.measure()
    assert backlog.paused == {B, idle}  # eight: more than half
    backlog.take(B, 4, MUCH)
    backlog.measure()
    assert not backlog.paused
    assert backlog.has_room.is_set()


def test_a_held_partition_waits_for_all_its_holders_and_the_others_run() -> None:
    backlog = Backlog()
    add(backlog, A, records(b"1"))
    add(backlog, B, records(b"1"))
    backlog.held[A] = {"seen"}
    assert [backlog.next(everything) for _ in range(2)] == [B, B]


@pytest.mark.parametrize(
    ("full", "standing"),
    [
        ([b""] * (backlogs.FULL + 1), [b""] * backlogs.PARTITION_FULL),
        ([bytes(1 << 20)] * 33, [bytes(1 << 20)] * 32),
    ],
    ids=["records", "bytes"],
)
def test_the_reader_slows_down_above_the_bound_and_a_long_queue_is_paused(
    full: Sequence[bytes], standing: Sequence[bytes]
) -> None:
    backlog = Backlog()
    add(backlog, A, records(*full))
    backlog.measure()
    assert not backlog.has_room.is_set()
    add(backlog, A, records(*standing))
    backlog.measure()
    assert backlog.paused == {A}
    is_full = not backlog.has_room.is_set()
    assert not is_full, "a paused partition does not slow the others down"
    backlog.take(A, len(standing), MUCH)
    backlog.take(A, len(standing), MUCH)
    backlog.measure()
    assert backlog.paused == frozenset()


def test_a_batch_shows_its_records_and_its_parts_are_batches() -> None:
    batch = Batch("t", 0, records(b"1", None, b"3"), decoder=int)
    assert (len(batch), batch.first_offset, batch.last_offset, batch.offsets()) == (3, 0, 4, [0, 2, 4])
    assert batch.keys() == [b"k0", b"k1", b"k2"]
    assert batch.values() == [b"1", b"", b"3"]
    assert batch.timestamps() == [1000, 1001, 1002]
    assert batch.headers() == [[], [], []]
    part = batch.where([True, False, True])
    assert list(part.changes()) == [1, 3]
    assert part.copies() == [{"key": b"k0", "value": b"1"}, {"key": b"k2", "value": b"3"}]
    assert list(batch[2:].changes()) == [3]
    with pytest.raises(ValueError, match="invalid literal"):
        list(batch.changes())


def test_the_records_of_a_failed_batch_come_one_by_one_and_the_guilty_one_is_marked() -> None:
    poison, error = Poison(), ValueError("no")
    assert poison.blame(Batch("t", 0, records(b"1", b"2", b"3")), error)
    assert poison.suspects == {A: 4}
    singles = [Batch("t", 0, records(b"1", first=first)) for first in (0, 2, 4)]
    assert poison.blame(singles[1], error)
    assert poison.blame(singles[2], error), "two guilty ones in a slice"
    for batch in singles:
        poison.mark(batch)
    assert [batch.error for batch in singles] == [None, error, error]
    poison.committed(Slice(None, (), {A: 3}))  # type: ignore[arg-type]  # no producer is needed
    assert A in poison.suspects
    poison.committed(Slice(None, (), {A: 5}))  # type: ignore[arg-type]
    assert poison.suspects == {}


def test_an_agent_that_fails_at_everything_is_not_a_matter_of_records() -> None:
    poison, fine = Poison(), True
    for offset in range(POISONED_IN_A_ROW + 1):
        fine = poison.blame(Batch("t", 0, records(b"1", first=offset)), ValueError("no"))
        assert fine == (offset < POISONED_IN_A_ROW)
    assert not fine
