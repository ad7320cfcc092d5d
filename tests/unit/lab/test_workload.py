from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from headwater.lab.proof import Item, ProofExpected, json_item
from headwater.lab.workload import (
    BATCH,
    CUSTOMERS,
    KEYS,
    LANES,
    ORDERS,
    Request,
    WorkloadPlan,
    WorkloadWrite,
    plan,
    send,
)
from models.attributes import normal_item, type_tags
from pipeline.errors import HeadwaterError, TransientError

PLAN = plan(seed=7, changes=4_000)


def requests(planned: WorkloadPlan) -> Iterator[Request]:
    for phase in (planned.customers, planned.lanes):
        for lane in phase:
            yield from lane


def tags(value: Mapping[str, Any]) -> Iterator[str]:
    ((tag, inner),) = value.items()
    yield tag
    if tag in {"L", "M"}:
        for one in inner if tag == "L" else inner.values():
            yield from tags(one)


def values(planned: WorkloadPlan) -> Iterator[Mapping[str, Any]]:
    for change in planned.truth():
        yield from (change.new or {}).values()


@pytest.mark.parametrize("changes", [1, 7, 8, 100, 1_999])
def test_a_plan_makes_exactly_the_changes_asked_for(changes: int) -> None:
    assert len(plan(1, changes).truth()) == changes
    assert sum(len(request.writes) for request in requests(plan(1, changes))) == changes


def test_the_same_seed_gives_the_same_plan() -> None:
    assert plan(7, 500) == plan(7, 500)
    assert plan(7, 500) != plan(8, 500)


def test_every_type_occurs_as_an_attribute_of_both_tables() -> None:
    for table in KEYS:
        found = {
            tag
            for change in PLAN.truth()
            if change.table == table and change.new
            for tag in map(one, change.new.values())
        }
        assert found == set(type_tags)


def one(value: Mapping[str, Any]) -> str:
    return next(tags(value))


def test_types_are_nested_and_reach_their_limits() -> None:
    found = list(values(PLAN))
    numbers = [value["N"] for value in found if "N" in value]

    assert {"S": ""} in found
    assert {"B": b""} in found
    assert {"NULL": True} in found
    assert any("M" in value and {"M", "L", "N"} <= set(tags(value)) for value in found)
    assert any(len(number) == 38 for number in numbers)
    assert any(number.startswith("-") for number in numbers)
    assert {"E+", "E-"} <= {number[number.index("E") :][:2] for number in numbers if "E" in number}


def test_keys_are_composite_binary_and_unicode() -> None:
    orders = [write.key for write in PLAN.writes() if write.change.table == ORDERS]
    customers = [write.key["customer_id"]["S"] for write in PLAN.writes() if write.change.table == CUSTOMERS]

    assert {tuple(key) for key in orders} == {("order_id", "line")}
    assert len({key["order_id"]["B"] for key in orders}) < len({str(key) for key in orders})
    with pytest.raises(UnicodeDecodeError):
        orders[0]["order_id"]["B"].decode()
    assert any(not name.isascii() for name in customers)
    assert any(name.isascii() for name in customers)


def test_the_version_of_an_item_rises_over_its_whole_life() -> None:
    born_again = 0
    for changes in PLAN.truth().items.values():
        versions = [change.version for change in changes if change.new is not None]
        assert versions == sorted(set(versions))
        assert changes[0].op == "c"
        born_again += sum(change.op == "c" for change in changes) > 1
    assert born_again > 10


def test_each_change_follows_from_the_one_before_and_none_leaves_its_item_as_it_was() -> None:
    for changes in PLAN.truth().items.values():
        item: Item | None = None
        for change in changes:
            assert change.old == item
            assert change.op == ("c" if change.old is None else "d" if change.new is None else "u")
            assert change.new != change.old
            item = change.new


def test_every_kind_of_write_occurs_and_most_changes_are_in_batches() -> None:
    changes: Counter[str] = Counter()
    for request in requests(PLAN):
        changes[request.means] += len(request.writes)
    writes = list(PLAN.writes())

    assert changes["batch"] > 0.6 * len(writes)
    assert min(changes["transaction"], changes["single"]) > 0.03 * len(writes)
    assert {write.change.op for write in writes} == {"c", "u", "d"}
    assert any(write.update for write in writes)
    assert any(
        request.means == means and {write.change.table for write in request.writes} == {ORDERS, CUSTOMERS}
        for means in ("transaction", "batch")
        for request in requests(PLAN)
    )


def test_a_request_is_no_larger_than_dynamodb_takes_and_never_names_an_item_twice() -> None:
    for request in requests(PLAN):
        items = {(write.change.table, write.change.key) for write in request.writes}
        assert len(items) == len(request.writes) <= BATCH


def test_an_item_belongs_to_one_lane() -> None:
    owner: dict[tuple[str, bytes], int] = {}
    for phase in (PLAN.customers, PLAN.lanes):
        assert len(phase) == LANES
        for number, lane in enumerate(phase):
            for request in lane:
                for write in request.writes:
                    assert owner.setdefault((write.change.table, write.change.key), number) == number


def test_the_customer_of_every_order_is_there_before_it_and_stays() -> None:
    settled = [write for lane in PLAN.customers for request in lane for write in request.writes]
    there = {write.key["customer_id"]["S"] for write in settled}
    deleted = {
        write.key["customer_id"]["S"]
        for write in PLAN.writes()
        if write.change.table == CUSTOMERS and write.change.op == "d"
    }

    assert len(settled) == 200
    assert all(write.change.op == "c" for write in settled)
    for change in PLAN.truth():
        if change.table == ORDERS and change.new:
            assert change.new["customer_id"]["S"] in there
    assert deleted
    assert not deleted & there


class Throttled:
    """Stands for a client that takes one item of each batch, and gives the others back, up to a number of calls."""

    def __init__(self, gives_back: int) -> None:
        self.gives_back = gives_back
        self.taken: list[Any] = []

    def batch_write_item(self, RequestItems: dict[str, list[Any]]) -> dict[str, Any]:  # noqa: N803 - boto3's name
        self.gives_back -= 1
        if self.gives_back < 0:
            self.taken += [one for table in RequestItems.values() for one in table]
            return {"UnprocessedItems": {}}
        (table, writes), *others = RequestItems.items()
        self.taken.append(writes[0])
        left = {table: writes[1:], **dict(others)}
        return {"UnprocessedItems": {name: some for name, some in left.items() if some}}


def a_batch() -> Request:
    return next(r for r in requests(PLAN) if r.means == "batch" and len({w.change.table for w in r.writes}) == 2)


def test_what_a_batch_gives_back_is_sent_again_after_longer_and_longer_pauses() -> None:
    client, pauses = Throttled(gives_back=3), list[float]()

    send(client, a_batch(), pauses.append)  # type: ignore[arg-type]

    assert len(client.taken) == len(a_batch().writes)
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


def test_a_batch_that_is_given_back_again_and_again_is_an_error_that_names_the_table() -> None:
    client, pauses = Throttled(gives_back=10**6), list[float]()

    with pytest.raises(TransientError, match="still throttled") as raised:
        send(client, Request("batch", a_batch().writes * 3), pauses.append)  # type: ignore[arg-type]

    assert ORDERS in str(raised.value) or CUSTOMERS in str(raised.value)
    assert isinstance(raised.value, HeadwaterError)


class Recorded:
    """Stands for a client that carries an update expression out, as far as the workload uses the language."""

    def __init__(self, item: Item) -> None:
        self.item = dict(item)

    def update_item(self, **call: Any) -> None:
        names, given = call["ExpressionAttributeNames"], call["ExpressionAttributeValues"]
        sets, _, removes = call["UpdateExpression"].removeprefix("SET ").partition(" REMOVE ")
        for name, value in (assignment.split(" = ") for assignment in sets.split(", ")):
            self.item[names[name]] = given[value]
        for name in filter(None, removes.split(", ")):
            del self.item[names[name]]


def test_an_update_turns_the_old_item_into_the_new_one() -> None:
    updates = [write for write in PLAN.writes() if write.update]
    assert updates
    for write in updates:
        client = Recorded(write.change.old or {})
        send(client, Request("single", (write,)))  # type: ignore[arg-type]
        assert client.item == write.change.new


def test_items_compare_as_their_stream_records_do() -> None:
    write: WorkloadWrite = next(PLAN.writes())
    change: ProofExpected = write.change

    assert normal_item(json_item(change.new or {})) == normal_item(
        json_item(dict(reversed((change.new or {}).items())))
    )
