"""Sinks read as tables: after each change each sink has the keys of the items that its route matches, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compiled_flows import flow
from support.made_events import record

from models.change import canonical, decode, item_key
from pipeline.flows.compile import CompileContext
from pipeline.settings.flows import FlowSettings
from pipeline.steps import flow as steps
from pipeline.steps.mask import canonical as in_normal_form
from pipeline.steps.secrecy import MaskKey

pytestmark = pytest.mark.slow

KEY = MaskKey(bytes(range(32)))
Item = dict[str, dict[str, str]]
Holds = Callable[[Item], bool]


def status(*wanted: str) -> Holds:
    return lambda item: item["status"]["S"] in wanted


def total(above: int) -> Holds:
    return lambda item: "total" in item and int(item["total"]["N"]) > above


def image(name: str, **leaves: Any) -> dict[str, Any]:
    return {"dynamodb": {name: leaves}}


CONDITIONS: list[tuple[Any, Holds]] = [
    (image("NewImage", status={"S": ["a"]}), status("a")),
    (image("NewImage", status={"S": ["a", "b"]}), status("a", "b")),
    (image("NewImage", total={"N": [{"numeric": [">", 1]}]}), total(1)),
    (
        image("NewImage", total={"N": [{"exists": False}]}, status={"S": ["b", "c"]}),
        lambda item: "total" not in item and item["status"]["S"] != "a",
    ),
    ({"eventName": ["INSERT", "MODIFY"], **image("NewImage", status={"S": ["c"]})}, status("c")),
    ('op != "d" && after.status == "a"', status("a")),
    ("op != 'd' && has(after.total) && after.total > 0", total(0)),
    ("(op == 'd' ? before : after).status in ['b', 'c']", status("b", "c")),
    ('op != "d" && after["status"] != "b"', status("a", "c")),
]
"""A condition as a flow has it, and what it says of an item's state."""
WHERES: list[tuple[Any, Holds]] = [
    *CONDITIONS,
    ({"eventName": ["INSERT", "MODIFY"]}, lambda item: True),
    ('op != "d"', lambda item: True),
    ({"tableName": [{"exists": False}]}, lambda item: True),
]
ENVELOPES = [
    {"kind": "plain"},
    {"kind": "plain", "tombstone": False},
    {"kind": "debezium"},
    {"kind": "debezium", "tombstone": True},
    {"kind": "dynamodb"},
    {"kind": "cloudevents"},
]
SHAPES: list[dict[str, Any]] = [
    {},
    {"drop": ["status"]},
    {"select": ["total"]},
    {"rename": {"id": "order", "total": "sum"}},
    {"mask": [{"path": "id", "how": "hash"}]},
    {"mask": [{"path": "id", "how": "tokenise"}, {"path": "status", "how": "redact"}], "rename": {"id": "order"}},
]


class Model(msgspec.Struct):
    """A flow, and what it means for the state of an item."""

    settings: dict[str, Any]
    where: Holds
    rules: list[tuple[str, Holds]]
    every: bool
    otherwise: str

    def sinks(self, item: Item) -> set[str]:
        """Return the sinks in which an item is."""
        if not self.where(item):
            return set()
        found = [sink for sink, holds in self.rules if holds(item)]
        if not found:
            return {self.otherwise} if self.otherwise else set()
        return set(found if self.every else found[:1])


@st.composite
def models(draw: st.DrawFn, conditions: Sequence[tuple[Any, Holds]] = CONDITIONS) -> Model:
    """Draw flows in which an item can leave a sink."""
    rules = draw(
        st.lists(
            st.tuples(st.sampled_from(["x", "y", "{table}-z"]), st.sampled_from(conditions)), min_size=1, max_size=3
        )
    )
    every = draw(st.booleans())
    where = draw(st.none() | st.sampled_from(WHERES))
    end = draw(st.sampled_from(["", "route", "otherwise"]))
    to = [{"sink": sink, "where": condition} for sink, (condition, _) in rules]
    found = {
        "from": ["orders"],
        "to": [*to, "rest"] if end == "route" else to,
        "match": "all" if every else "first",
        "envelope": draw(st.sampled_from(ENVELOPES)),
        "mask_key": "env:KEY",
        **draw(st.sampled_from(SHAPES)),
    }
    if where is not None:
        found["where"] = where[0]
    if end == "otherwise":
        found["otherwise"] = "rest"
    if len({sink for sink, _ in rules}) + bool(end) == 1 or draw(st.booleans()):
        found["on_leave"] = draw(st.sampled_from(["delete", "tombstone"]))
    states = [(sink.replace("{table}", "orders"), holds) for sink, (_, holds) in rules]
    if end == "route":
        states.append(("rest", lambda item: True))
    return Model(found, where[1] if where else lambda item: True, states, every, "rest" if end == "otherwise" else "")


keys = st.sampled_from([("id",), ("id", "n")])
contents = st.fixed_dictionaries(
    {"status": st.sampled_from("abc").map(lambda text: {"S": text})},
    optional={"total": st.integers(0, 2).map(lambda number: {"N": str(number)}), "note": st.just({"S": "x"})},
)
writes = st.lists(st.tuples(st.integers(1, 3), st.none() | contents), min_size=1, max_size=10)
"""Which item, and what it becomes; None: it is deleted."""


def history(writes: Sequence[tuple[int, Any]], names: Sequence[str]) -> Iterator[tuple[int, Item | None, bytes]]:
    """Yield changes as on raw: the number of the item, its state after the change, the record."""
    states: dict[int, Item] = {}
    for place, (number, content) in enumerate(writes, 1):
        old = states.pop(number, None)
        new = None if content is None else {"id": {"S": f"k{number}"}, "n": {"N": str(number)}, **content}
        if new is not None:
            states[number] = new
        if new is not None or old is not None:
            yield number, new, record(new, old, names, place)


def given_of(offset: int, value: bytes, **more: Any) -> steps.Given:
    change = decode(value)
    return steps.Given(offset, item_key(change.body.keys), value, change, 0.0, **more)


class Tables:
    """The sinks of a flow, read as tables: the keys that each has."""

    def __init__(self, *, exact: bool = False) -> None:
        """`exact`: nothing is deleted that is not there."""
        self.keys: dict[str, set[bytes]] = {}
        self._exact = exact

    def read(self, result: steps.Result) -> None:
        """Apply the messages of a change, as a reader of each sink does."""
        assert result.error is None, result.error
        before = {sink: set(found) for sink, found in self.keys.items()}
        for message in result.messages:
            assert message.key is not None
            said = dict(message.headers)
            table = self.keys.setdefault(message.sink, set())
            if message.value is None or said["op"] == b"d":
                assert not self._exact or message.key in before.get(message.sink, ()), message
                table.discard(message.key)
            else:
                table.add(message.key)
            assert ("moved_to" in said) <= message.left

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Mapping)
        return {sink: found for sink, found in self.keys.items() if found} == other

    __hash__ = None  # type: ignore[assignment]


def key_in_sinks(item: Item, names: Sequence[str], settings: Mapping[str, Any]) -> bytes:
    """Return the key under which a sink has an item."""
    found: dict[str, Any] = {name: item[name] for name in names}
    for mask in settings.get("mask", ()):
        if mask["path"] in found:
            value = found[mask["path"]]
            hashed = KEY.hash(in_normal_form(value))
            found[mask["path"]] = {"S": hashed if mask["how"] == "hash" else KEY.tokenise(canonical(value))}
    return canonical(found)


def wanted(model: Model, states: Mapping[int, Item], names: Sequence[str]) -> dict[str, set[bytes]]:
    """Return the keys that each sink must have."""
    found: dict[str, set[bytes]] = {}
    for item in states.values():
        for sink in model.sinks(item):
            found.setdefault(sink, set()).add(key_in_sinks(item, names, model.settings))
    return found


def check(model: Model, changes: Sequence[tuple[int, Item | None, bytes]], names: Sequence[str], batch: int) -> None:
    compiled = flow(means=CompileContext(mask_key=lambda uri: KEY), **model.settings)
    tables, states = Tables(exact=True), dict[int, Item]()
    for begin in range(0, len(changes), batch):
        piece = changes[begin : begin + batch]
        results = compiled.run([given_of(begin + n, value) for n, (_, _, value) in enumerate(piece)])
        made = {result.given.offset: result for result in results}
        for place, (number, new, _) in enumerate(piece, begin):
            if place in made:
                tables.read(made[place])
            if new is None:
                del states[number]
            else:
                states[number] = new
            assert tables == wanted(model, states, names), (tables.keys, wanted(model, states, names))


@given(model=models(), writes=writes, names=keys, batch=st.integers(1, 10))
@settings(max_examples=500, deadline=None)
def test_each_sink_has_the_keys_of_the_items_that_its_route_matches(
    model: Model, writes: Any, names: Sequence[str], batch: int
) -> None:
    if FlowSettings.model_validate({"name": "f", **model.settings}).leaves is None:
        return  # one condition, and one sink
    check(model, list(history(writes, names)), names, batch)


def test_without_it_the_sinks_are_wrong() -> None:
    """The property can fail."""
    first, holds = CONDITIONS[0]
    to = [{"sink": "x", "where": first}, "rest"]
    model = Model(
        {"to": to, "on_leave": "ignore"}, lambda item: True, [("x", holds), ("rest", lambda item: True)], False, ""
    )
    changes = list(history([(1, {"status": {"S": "a"}}), (1, {"status": {"S": "b"}})], ["id"]))
    with pytest.raises(AssertionError):
        check(model, changes, ["id"], 1)
    del model.settings["on_leave"]
    check(model, changes, ["id"], 1)


TIERS: list[tuple[Any, Callable[[str | None], bool]]] = [
    ({"enriched": {"customer": {"M": {"tier": {"S": ["gold"]}}}}}, lambda tier: tier == "gold"),
    ("enriched.customer != null && enriched.customer.tier != 'gold'", lambda tier: tier is not None and tier != "gold"),
    ("enriched.tier == 'silver'", lambda tier: tier == "silver"),
]
referring = st.fixed_dictionaries(
    {
        "customer": st.sampled_from(["c1", "c2"]).map(lambda text: {"S": text}),
        "status": st.sampled_from("abc").map(lambda text: {"S": text}),
    }
)
events = st.lists(
    st.tuples(st.integers(1, 2), st.none() | referring, st.just(False))
    | st.tuples(st.sampled_from(["c1", "c2"]), st.none() | st.sampled_from(["gold", "silver"]), st.booleans()),
    min_size=1,
    max_size=10,
)
"""Changes of items, and of what they refer to."""


def by_tier(rule: tuple[Any, Callable[[str | None], bool]]) -> tuple[Any, Callable[[Item, str | None], bool]]:
    return rule[0], lambda item, tier: rule[1](tier)


def by_state(rule: tuple[Any, Holds]) -> tuple[Any, Callable[[Item, str | None], bool]]:
    return rule[0], lambda item, tier: rule[1](item)


conditions = st.sampled_from(TIERS).map(by_tier) | st.sampled_from(CONDITIONS).map(by_state)


@given(
    rules=st.lists(st.tuples(st.sampled_from(["x", "y"]), conditions), min_size=1, max_size=2),
    every=st.booleans(),
    missing=st.sampled_from(["null", "drop"]),
    otherwise=st.booleans(),
    events=events,
)
@settings(max_examples=300, deadline=None)
def test_sinks_are_right_also_where_a_reference_decides_and_its_change_sends_items_again(
    rules: Any, every: bool, missing: str, otherwise: bool, events: Any
) -> None:
    customers: dict[bytes, bytes] = {}
    steps_of_it = [
        {
            "kind": "join",
            "table": "customers",
            "on": "customer",
            "into": "customer",
            "missing": missing,
            "on_reference_change": "re-emit",
        },
        {"kind": "compute", "as": "enriched.customer == null ? 'none' : enriched.customer.tier", "into": "tier"},
    ]
    to = [{"sink": sink, "where": condition} for sink, (condition, _) in rules]
    last: dict[str, Any] = {"otherwise": "rest"} if otherwise else {}
    compiled = flow(
        {"customers": customers.get},
        to=to,
        match="all" if every else "first",
        enrich=steps_of_it,
        on_leave="delete",
        envelope="plain",
        **last,
    )
    tables, states, newest = Tables(), dict[int, Item](), dict[int, bytes]()
    joined: dict[int, bytes | None] = {}
    """What each item was joined with, when it was sent last."""

    def sinks(item: Item) -> set[str]:
        found = reference(item)
        tier = None if found is None else json.loads(found)["tier"]["S"]
        if tier is None and missing == "drop":
            return set()
        taking = [sink for sink, (_, holds) in rules if holds(item, tier)]
        rest = {"rest"} if otherwise else set()
        return set(taking if every else taking[:1]) or rest

    def reference(item: Item) -> bytes | None:
        return customers.get(json.dumps(item["customer"], separators=(",", ":")).encode())

    for place, (which, what, late) in enumerate([*events, ("c1", None, False)], 1):
        if isinstance(which, str):
            if what is None:
                customers.pop(b'{"S":"%b"}' % which.encode(), None)
            else:
                customers[b'{"S":"%b"}' % which.encode()] = json.dumps({"tier": {"S": what}}).encode()
            again = [number for number, item in states.items() if joined[number] != reference(item)]
            for number in () if late else again:  # the worker may come to that later
                joined[number] = reference(states[number])
                for result in compiled.run([given_of(number, newest[number], unsure=True)]):
                    tables.read(result)
        else:
            old = states.pop(which, None)
            new = None if what is None else {"id": {"S": f"k{which}"}, **what}
            if new is None and old is None:
                continue
            value = record(new, old, number=place)
            unsure = old is not None and joined[which] != reference(old)
            if new is not None:
                states[which], newest[which], joined[which] = new, value, reference(new)
            for result in compiled.run([given_of(place, value, unsure=unsure)]):
                tables.read(result)
        expected: dict[str, set[bytes]] = {}
        for item in states.values():
            for sink in sinks(item):
                expected.setdefault(sink, set()).add(canonical({"id": item["id"]}))
        if all(joined[number] == reference(item) for number, item in states.items()):
            assert tables == expected, (tables.keys, expected)
