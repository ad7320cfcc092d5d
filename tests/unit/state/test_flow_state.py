"""What waits, and what was joined, in a partition's table: in order, and undone with its slice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.settings.enrich import PARTITIONED
from pipeline.state.flow_state import JoinedItem, Joins, Reached, Reference
from pipeline.state.held_changes import FlowItem, Head, HeldChange, HeldChanges, HeldState, Times
from pipeline.state.items import PartitionItems
from pipeline.state.table_partitions import TablePartition
from pipeline.transport import Slice

A, B = FlowItem("f", b'{"id":{"S":"a"}}'), FlowItem("f", b'{"id":{"S":"b"}}')
ADA, BOB = JoinedItem("customers", b"ada", b"1"), JoinedItem("customers", b"bob", b"1")


@pytest.fixture
def part(tmp_path: Path) -> Iterator[TablePartition]:
    partition = TablePartition(tmp_path / "p.db")
    yield partition
    partition.close()


def commit(part: TablePartition) -> None:
    part.freeze()
    part.committed(0)


def waiting(offset: int) -> HeldChange:
    return HeldChange(offset, 1.5, b"key", b"value %d" % offset)


def test_what_waits_comes_back_in_the_order_of_raw_across_slices(part: TablePartition) -> None:
    blocked: list[tuple[FlowItem, Head]] = []
    held = HeldChanges(part, lambda place, head: blocked.append((place, head)), Times(lambda: 1.5))
    held.block(A, Head(*A, 10))
    held.hold(A, waiting(300))
    commit(part)
    held.hold(A, waiting(11))
    held.hold(B, waiting(12))
    assert held.head(A) == Head("f", A.item, 10)
    assert held.head(B) is None
    assert held.count(A) == 2
    assert [one.offset for one in held.free(A)] == [11, 300]
    assert held.head(A) is None
    assert held.count(A) == 0
    assert [one.offset for one in held.free(B)] == [12]
    assert blocked == [(A, Head(*A, 10))]


def test_an_aborted_slice_leaves_what_waits_as_it_was(part: TablePartition) -> None:
    held = HeldChanges(part, lambda place, head: None, Times(lambda: 1.5))
    held.block(A, Head(*A, 10, ("customers", b"k"), 99.5))
    held.hold(A, waiting(10))
    commit(part)
    assert len(held.free(A)) == 1
    part.freeze()
    part.aborted()
    assert held.head(A) == Head(*A, 10, ("customers", b"k"), 99.5)
    assert list(held.heads()) == [Head(*A, 10, ("customers", b"k"), 99.5)]
    assert held.free(A) == [waiting(10)]


def test_what_waits_behind_a_change_is_found_by_its_offset(part: TablePartition) -> None:
    held = HeldChanges(part, lambda place, head: None, Times(lambda: 1.5))
    held.block(A, Head(*A, 10))
    held.block(B, Head(*B, 11))
    commit(part)
    assert (held.behind("f", 10), held.behind("f", 11), held.behind("g", 10), held.behind("f", 12)) == (
        A,
        B,
        None,
        None,
    )


def found(joins: Joins, one: JoinedItem, after: bytes = b"", most: int = 10) -> list[bytes]:
    entries = [joins.get(key) for _, key in joins.with_reference(Reference(one.table, one.key), after, most)]
    return [entry.item for entry in entries if entry is not None]


def test_an_item_is_found_by_the_references_of_its_last_change(part: TablePartition) -> None:
    joins = Joins(part)
    assert not joins
    joins.put(A, [ADA], waiting(1))
    joins.put(B, [ADA, BOB], waiting(2))
    assert set(found(joins, ADA)) == {A.item, B.item}
    commit(part)
    assert joins
    joins.put(A, [BOB], waiting(3))
    assert found(joins, ADA) == [B.item]
    assert set(found(joins, BOB)) == {A.item, B.item}
    joins.put(B, [], waiting(4))
    commit(part)
    assert found(joins, ADA) == []
    assert found(joins, BOB) == [A.item]
    joins.put(FlowItem("f", b"unknown"), [], waiting(5))
    assert not part.dirty, "nothing to take note of"


def test_many_items_of_a_reference_are_found_piece_by_piece(part: TablePartition) -> None:
    joins = Joins(part)
    places = [FlowItem("f", b"%d" % number) for number in range(25)]
    for number, place in enumerate(places):
        joins.put(place, [ADA], waiting(number))
        if number == 15:
            commit(part)
    seen: list[bytes] = []
    after = b""
    while some := joins.with_reference(Reference(ADA.table, ADA.key), after, 10):
        assert len(some) <= 10
        seen += [entry.item for _, key in some if (entry := joins.get(key)) is not None]
        after = some[-1][0]
    assert sorted(seen) == sorted(place.item for place in places)


def test_how_far_a_reference_was_followed_is_known(part: TablePartition) -> None:
    joins = Joins(part)
    assert joins.reached("customers", 0) is None
    joins.reach("customers", 0, Reached(5, b"x/..."))
    commit(part)
    assert joins.reached("customers", 0) == Reached(5, b"x/...")
    assert joins.reached("customers", 1) is None


def test_items_of_partitioned_tables_are_kept_by_table_and_undone_with_their_slice(part: TablePartition) -> None:
    items = PartitionItems(part)
    assert items.key_schema("customers") == ""
    items.put("customers", b"k", b"1", "id (S)")
    items.put("totals", b"k", b"2", "id (N)")
    assert [items.get(table, b"k") for table in ("customers", "totals", "t")] == [b"1", b"2", None]
    commit(part)
    items.put("customers", b"k", b"3", "id (S)")
    assert part.freeze().keys() == {b"r/customers/k"}, "a key schema is written when it is another"
    part.aborted()
    assert items.get("customers", b"k") == b"1"
    items.put("customers", b"k", None, "other (S)")
    commit(part)
    assert items.get("customers", b"k") is None
    assert [items.key_schema(table) for table in ("customers", "totals")] == ["other (S)", "id (N)"]


def test_what_was_joined_by_own_key_is_found_without_an_index(part: TablePartition) -> None:
    joins, one = Joins(part), JoinedItem(f"{PARTITIONED}customers", A.item, b"1")
    joins.put(A, [one, ADA], waiting(1))
    assert part.freeze().keys() == {*part.written(b"i/"), *part.written(b"x/")}
    assert len(part.written(b"x/")) == 1, "that of the global table"
    entry = joins.joined(A, Reference(one.table, one.key))
    assert entry is not None
    assert entry.last == waiting(1)
    assert joins.joined(A, Reference(f"{PARTITIONED}other", one.key)) is None
    assert joins.joined(B, Reference(one.table, one.key)) is None
    assert found(joins, ADA) == [A.item]


def test_nothing_continues_before_the_flows_are_there(part: TablePartition, tmp_path: Path) -> None:
    released: list[FlowItem] = []
    ready = False
    parked = HeldState(
        cast("Any", SimpleNamespace(participants=[])),
        "raw",
        "flow-state",
        tmp_path,
        is_there=lambda partition, table, key: True,
        release=lambda partition, place: released.append(place),
        is_ready=lambda: ready,
    )
    place, head = FlowItem("f", b"k"), Head("f", b"k", 3, ("customers", b"c"), 60.0)
    parked.all = {0: part}
    parked.held(0).block(place, head)
    commit(part)
    parked._awaiting[0, place] = head, 0.0
    slice_of_another_agent = Slice(cast("Any", None))
    assert not parked.due()
    parked.finish(slice_of_another_agent)
    assert released == []
    ready = True
    assert parked.due()
    parked.finish(slice_of_another_agent)
    assert released == [place]
