"""The pure parts of snapshots: rows, tips, joining, what is remembered, forecasts, repairs."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from models.change import decode
from models.gap import Gap
from models.snapshot import BEGIN, END, mark, part, row, row_head
from pipeline.sources.shard_positions import ShardPosition
from pipeline.sources.shards import Shard
from pipeline.sources.snapshots.known import Segment, Snapshot, Snapshots, repaired
from pipeline.sources.snapshots.scan import Facts, forecast, rows_of, segments_for
from pipeline.sources.snapshots.tips import CHILDLESS_S, is_reached, tip_of
from pipeline.state.delivered import DeliveredItems, entries_of
from pipeline.state.table_partitions import TablePartition
from pipeline.steps.snapshot import admit


def a_row(item: str, snapshot: str = "s1", table: str = "orders") -> tuple[bytes, bytes]:
    key = b'{"id":{"S":"%s"}}' % item.encode()
    return key, row(row_head(table, "eu-west-1", 1_000.7), table, snapshot, key, b'{"id":{"S":"x"},"n":{"N":"1"}}')


def a_change(item: str, table: str = "orders") -> tuple[bytes, bytes]:
    key = b'{"id":{"S":"%s"}}' % item.encode()
    arn = f"arn:aws:dynamodb:eu-west-1:0:table/{table}/stream/x"
    body = {"Keys": json.loads(key)}
    change = {"eventSourceARN": arn, "eventID": "e", "eventName": "MODIFY", "dynamodb": body}
    return key, json.dumps(change).encode()


def a_mark(what: str, snapshot: str = "s1", table: str = "orders") -> tuple[None, bytes]:
    return None, mark(table, snapshot, what)


@pytest.fixture
def memory(tmp_path: Path) -> DeliveredItems:
    return DeliveredItems(TablePartition(tmp_path / "delivered.db"))


def test_a_row_is_a_change() -> None:
    key, value = a_row("a")
    change = decode(value)
    assert (change.op, change.table, change.source, change.ts_us) == ("r", "orders", "snapshot", 1_000_000_000)
    assert (change.before, change.after) == (None, b'{"id":{"S":"x"},"n":{"N":"1"}}')
    assert bytes(change.body.keys) == key
    of = part(change.event_id)
    assert of is not None
    assert of[:2] == ("orders", "s1")
    assert part("0123456789abcdef") is None


def test_rows_pass_until_the_stream_speaks_and_marks_never_do(memory: DeliveredItems) -> None:
    records = [a_change("old"), a_mark(BEGIN), a_change("a"), a_row("a"), a_row("b"), a_row("old"), a_change("b")]
    joined = admit(records, memory)
    assert joined.keep == [True, False, True, False, True, True, True]
    assert (joined.written, joined.superseded) == (2, 1)
    assert admit([a_row("b")], memory).keep == [False]


def test_rows_of_a_snapshot_that_has_ended_are_dropped(memory: DeliveredItems) -> None:
    assert admit([a_row("a")], memory).keep == [False]
    assert admit([a_mark(BEGIN), a_mark(END), a_row("a")], memory).keep == [False, False, False]
    assert not memory.active


def test_changes_of_other_tables_are_not_remembered(memory: DeliveredItems) -> None:
    assert admit([a_mark(BEGIN), a_change("a", "customers"), a_row("a")], memory).keep == [False, True, True]


def test_what_was_delivered_before_a_snapshot_began_does_not_count_for_it(memory: DeliveredItems) -> None:
    """Between the two beginnings there may be a gap, which the second is to repair."""
    admit([a_mark(BEGIN), a_change("a"), a_mark(BEGIN, "s2"), a_change("b")], memory)
    records = [a_row("a", "s1"), a_row("a", "s2"), a_row("b", "s1"), a_row("b", "s2")]
    assert admit(records, memory).keep == [False, True, False, False]
    assert admit([a_mark(END), a_row("b", "s2"), a_row("c", "s1")], memory).keep == [False, False, False]


def test_what_is_not_a_change_passes_to_be_rejected(memory: DeliveredItems) -> None:
    admit([a_mark(BEGIN)], memory)
    assert admit([(b"k", b"{")], memory).keep == [True]


def test_a_snapshot_that_begins_while_the_last_is_being_forgotten_keeps_its_own(tmp_path: Path) -> None:
    partition = TablePartition(tmp_path / "delivered.db")
    memory = DeliveredItems(partition)
    admit([a_mark(BEGIN), a_change("a"), a_mark(END), a_mark(BEGIN, "s2"), a_change("b")], memory)
    partition.freeze()
    partition.committed(1)
    again = DeliveredItems(partition)
    assert again.leaving == [("orders", "s1")]
    gone = list(partition.keys(entries_of("orders", "s1"), entries_of("orders", "s1")))
    assert len(gone) == 1
    partition.write(dict.fromkeys(gone))
    again.forget("orders", "s1")
    assert admit([a_row("a", "s2"), a_row("b", "s2")], again).keep == [True, False]


def test_a_record_says_up_to_when_and_a_second_empty_answer_says_now() -> None:
    assert tip_of(90.0, 0, 100.0) == 90.0
    assert tip_of(None, 0, 100.0) == 0.0
    assert tip_of(None, 1, 100.0) == 100.0


OLD, YOUNG = Shard("old"), Shard("young", ("old",))


@pytest.mark.parametrize(
    ("listed", "places", "reached"),
    [
        ([], {}, False),
        ([OLD], {}, False),
        ([OLD], {"old": ShardPosition("t", None, tip=99)}, False),
        ([OLD], {"old": ShardPosition("t", None, tip=100)}, True),
        # Finished without having been at its tip then: its child has the rest, and no child is a child that is late.
        ([OLD], {"old": ShardPosition("t", None, finished=True, at=99)}, False),
        ([OLD, YOUNG], {"old": ShardPosition("t", None, finished=True, at=99)}, False),
        (
            [OLD, YOUNG],
            {"old": ShardPosition("t", None, finished=True, at=99), "young": ShardPosition("t", None, tip=100)},
            True,
        ),
        # At its tip then: what came later has younger changes only, however deep.
        ([OLD, YOUNG, Shard("x", ("young",))], {"old": ShardPosition("t", None, finished=True, tip=100)}, True),
        # Trimmed from the listing after it was read.
        (
            [YOUNG],
            {"old": ShardPosition("t", None, finished=True, at=1), "young": ShardPosition("t", None, tip=100)},
            True,
        ),
        ([OLD], {"old": ShardPosition("t", None, finished=True, at=99 - CHILDLESS_S)}, True),
    ],
)
def test_a_stream_is_read_up_to_a_time(listed: list[Shard], places: dict[str, ShardPosition], reached: bool) -> None:
    assert is_reached(listed, places, 100.0) is reached


def test_a_page_becomes_rows_and_a_position() -> None:
    body = (
        b'{"Items":[{"n":{"N":"1"},"id":{"S":"a"},"at":{"N":"7"}}],"LastEvaluatedKey":{"id":{"S":"a"},"at":{"N":"7"}},'
        b'"ConsumedCapacity":{"CapacityUnits":2.5}}'
    )
    page = rows_of(body, Snapshot("orders", "s1", 1), Segment(None, 3, 1.5), ("id", "at"), "eu-west-1", 1.0)
    ((key, value),) = ((record["key"], record["value"]) for record in page.cut.records)
    assert key == b'{"at":{"N":"7"},"id":{"S":"a"}}'
    assert decode(value).after == b'{"n":{"N":"1"},"id":{"S":"a"},"at":{"N":"7"}}'
    assert page.segment == Segment({"id": {"S": "a"}, "at": {"N": "7"}}, 4, 4.0, finished=False)
    last = rows_of(b'{"Items":[]}', Snapshot("orders", "s1", 1), page.segment, ("id", "at"), "eu-west-1", 1.0)
    assert last.segment == Segment(None, 4, 4.0, finished=True)


def test_a_forecast_says_units_time_and_cost() -> None:
    facts = Facts("orders", "NEW_IMAGE", "arn", ("id",), 1_000_000, 4096 * 800_000, 1_000, on_demand=True)
    found = forecast(facts, 400.0, 1)
    assert (found.units, found.seconds, found.dollars) == (800_000, 2_000.0, 0.1)
    assert str(found) == "orders: about 1,000,000 items, 3.277 GB, 800,000 read units, 0:33:20, about $0.10"
    assert segments_for(0) == 1
    assert segments_for(1 << 40) == 16


def test_a_gap_is_repaired_by_a_snapshot_that_began_later_and_is_done() -> None:
    gap = Gap("orders", "arn", "s", None, "trimmed", at=100.0)
    done = Snapshot("orders", "s1", 1, state="done", began=101.0)
    assert repaired(gap, [done])
    for other in ({"state": "running"}, {"began": 99.0}, {"table": "customers"}):
        assert not repaired(gap, [msgspec.structs.replace(done, **other)])


def test_what_is_known_of_snapshots_follows_the_topic() -> None:
    known, one = Snapshots(), Snapshot("orders", "s1", 2, state="running")
    known.take(one.stream, "", msgspec.json.encode(one))
    known.take(one.stream, "0", msgspec.json.encode(Segment(None, 5, 1.0, finished=True)))
    assert known.running("orders") == [one]
    assert known.running("customers") == []
    assert not known.finished(one)
    assert known.rows(one) == 5
    known.take(one.stream, "1", msgspec.json.encode(Segment(None, 7, 1.0, finished=True)))
    assert known.finished(one)
    known.take(one.stream, "1", None)
    assert known.rows(one) == 5
