"""The steps, alone: batch in, batch out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError
from support.compiled_flows import flow, run, sinks
from support.paths import EVENTS

from models.change import decode, item_key
from pipeline.errors import UsageError
from pipeline.flows.compile import CompileContext, compile_flow
from pipeline.settings.flows import FlowSettings
from pipeline.steps.deduplicate import deduplicate
from pipeline.steps.enrich import MissingReferenceError, OtherKeyError, has_sort_key, key_schema, reference_key
from pipeline.steps.filter import PatternError, compile_pattern
from pipeline.steps.flow import Given, Result
from pipeline.steps.route import headers

ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-11-23T00:00:00.000"
RECORD = json.loads((EVENTS / "dynamodb-stream-modify.json").read_text())
VALUE = json.dumps({**RECORD, "eventSourceARN": ARN}).encode()


class Memory:
    """A seen table without Kafka."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def add_new(self, ids: Sequence[str]) -> list[bool]:
        news = []
        for event_id in ids:
            news.append(event_id not in self.ids)
            self.ids.add(event_id)
        return news


def test_a_change_passes_once_within_a_batch_and_across_batches() -> None:
    memory = Memory()
    first = deduplicate([b'{"eventID":"a"}', b'{"eventID":"b"}', b'{"eventID":"a"}'], memory.add_new)
    assert (first.fresh, first.duplicates) == ([True, True, False], 1)
    second = deduplicate([b'{"eventID":"b"}', b'{"eventID":"c"}'], memory.add_new)
    assert (second.fresh, second.duplicates) == ([False, True], 1)


def test_what_has_no_event_id_is_rejected_and_the_rest_continues() -> None:
    result = deduplicate([b"nonsense", b'{"eventID":"a"}', b'{"eventID":"a"}'], Memory().add_new)
    assert (result.fresh, result.duplicates) == ([False, True, False], 1)
    assert [index for index, _ in result.rejected] == [0]


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ({"eventName": ["MODIFY"]}, True),
        ({"eventName": ["INSERT", "MODIFY"]}, True),
        ({"eventName": ["REMOVE"]}, False),
        ({"dynamodb": {"NewImage": {"status": {"S": ["paid"]}}}}, True),
        ({"dynamodb": {"NewImage": {"status": {"S": ["open"]}}}}, False),
        ({"dynamodb": {"NewImage": {"nothing": {"S": ["paid"]}}}}, False),
        ({"eventName": ["MODIFY"], "dynamodb": {"SizeBytes": [59]}}, True),
        ({"dynamodb": ["MODIFY"]}, False),
    ],
)
def test_a_pattern_matches_exact_values(pattern: dict[str, object], matches: bool) -> None:
    assert compile_pattern(pattern)(RECORD) is matches


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ({}, "is empty"),
        ({"a": "b"}, "a: expected a list"),
        ({"a": {"b": [{"prefx": "x"}]}}, "a.b: there is no operator 'prefx', expected one of prefix"),
        ({"a": []}, "a: expected a list"),
    ],
)
def test_a_pattern_that_cannot_be_compiled_says_where(pattern: dict[str, object], words: str) -> None:
    with pytest.raises(PatternError, match=words):
        compile_pattern(pattern)


def test_a_flow_with_a_bad_pattern_is_named() -> None:
    with pytest.raises(UsageError, match="flow f, where: a: expected"):
        flow(where={"a": 1})


CUSTOMER = {"kind": "join", "table": "customers", "on": "customer_id", "into": "customer"}


def test_a_join_adds_the_item_and_keeps_every_byte_of_the_change() -> None:
    items = {b'{"S":"c-1"}': b'{"name":{"S":"Ada"}}'}
    (result,) = run(flow({"customers": items.get}, enrich=[CUSTOMER]), VALUE)
    (message,) = result.messages
    assert message.value is not None
    assert message.value.startswith(VALUE[:-1])
    assert json.loads(message.value)["enriched"] == {"customer": {"M": {"name": {"S": "Ada"}}}}
    assert decode(message.value).enriched == b'{"customer":{"M":{"name":{"S":"Ada"}}}}'


@pytest.mark.parametrize("on", ["status", "nothing", "enriched.nothing.at_all"])
def test_a_join_that_finds_nothing_gives_null_or_leaves_the_change_out_or_rejects_it(on: str) -> None:
    def joined(**more: Any) -> Result:
        return run(flow({"customers": lambda _: None}, enrich=[{**CUSTOMER, "on": on, **more}]), VALUE)[0]

    (message,) = joined().messages
    assert json.loads(message.value or b"")["enriched"] == {"customer": {"NULL": True}}
    assert joined(missing="drop").messages == []
    rejected = joined(missing="reject")
    assert (rejected.messages, rejected.stage) == ([], "enrich.0 join")
    assert isinstance(rejected.error, MissingReferenceError)


def test_a_join_waits_for_a_late_reference_until_its_time_is_over() -> None:
    def joined(at: float) -> Result:
        waiting = flow({"customers": lambda _: None}, enrich=[{**CUSTOMER, "hold": 60}])
        return run(waiting, VALUE, at=at)[0]

    now = time.monotonic()
    assert isinstance(waits := joined(now).error, MissingReferenceError)
    assert (waits.table, waits.key, waits.until) == ("customers", b'{"S":"c-1"}', now + 60)
    assert len(joined(now - 61).messages) == 1


OWN = {"kind": "join", "table": "totals", "state": "partitioned", "into": "total"}
OWN_KEY = item_key(decode(VALUE).body.keys)


def by_own_key(items: dict[bytes, bytes], schema: str = "", **more: Any) -> Result:
    """What a join by own key makes of VALUE, whose item has a composite key."""
    whole = {"name": "f", "from": ["orders"], "enrich": [{**OWN, **more}], "to": "s"}
    means = CompileContext(references={"partitioned:totals": items.get}, key_schema=lambda table: schema)
    (result,) = compile_flow(FlowSettings.model_validate(whole), means).run(
        [Given(0, OWN_KEY, VALUE, decode(VALUE), 0.0)]
    )
    return result


def test_a_partitioned_join_finds_the_item_of_the_changes_own_key() -> None:
    result = by_own_key({OWN_KEY: b'{"sum":{"N":"7"}}'}, on_reference_change="re-emit")
    assert json.loads(result.messages[0].value or b"")["enriched"] == {"total": {"M": {"sum": {"N": "7"}}}}
    assert [(table, key) for table, key, _ in result.references] == [("partitioned:totals", OWN_KEY)]
    (message,) = by_own_key({}).messages
    assert json.loads(message.value or b"")["enriched"] == {"total": {"NULL": True}}
    assert by_own_key({}, missing="drop").messages == []
    assert isinstance(by_own_key({}, missing="reject").error, MissingReferenceError)


def test_a_change_whose_key_is_another_than_that_of_the_partitioned_table_is_rejected() -> None:
    own = "line (N), order_id (S)"
    assert key_schema(decode(VALUE)) == own
    assert by_own_key({}, own).error is None
    for more in ({}, {"missing": "drop"}, {"hold": 60}):
        result = by_own_key({}, "order_id (N)", **more)
        assert (result.stage, result.messages, type(result.error)) == ("enrich.0 join", [], OtherKeyError)
        assert f"has the key order_id (N), the change has the key {own}" in str(result.error)
        assert 'state = "global" and `on`' in str(result.error)


def test_joins_follow_one_another_and_expressions_see_what_they_found() -> None:
    customers = {b'{"S":"c-1"}': b'{"name":{"S":"Ada"},"region":{"S":"eu"}}'}
    regions = {b'{"S":"eu"}': b'{"rate":{"N":"1.25"}}'}
    region = {"kind": "join", "table": "regions", "on": "enriched.customer.region", "into": "region"}
    price = {"kind": "compute", "as": "enriched.region.rate * 4.0", "into": "price"}
    chain = flow(
        {"customers": customers.get, "regions": regions.get},
        enrich=[CUSTOMER, region, price],
        to=[{"sink": "five", "where": "enriched.price == 5"}, {"sink": "other"}],
    )
    (result,) = run(chain, VALUE)
    (message,) = result.messages
    assert message.sink == "five"
    assert json.loads(message.value or b"")["enriched"]["price"] == {"N": "5"}


def test_a_pattern_of_a_route_sees_what_was_added() -> None:
    items = {b'{"S":"c-1"}': b'{"tier":{"S":"gold"}}'}
    gold = {"enriched": {"customer": {"M": {"tier": {"S": ["gold"]}}}}, "eventName": ["MODIFY"]}
    routed = flow({"customers": items.get}, enrich=[CUSTOMER], to=[{"sink": "gold", "where": gold}, {"sink": "rest"}])
    assert sinks(routed, VALUE) == ["gold"]
    items.clear()
    assert sinks(routed, VALUE) == ["rest"]
    with pytest.raises(UsageError, match="nothing is added yet"):
        flow(where=gold)


def test_a_reference_is_looked_up_by_the_value_of_its_only_key_attribute_else_by_its_whole_key() -> None:
    customer = {**RECORD, "tableName": "customers", "dynamodb": {"Keys": {"id": {"S": "c-1"}}}}
    alone, both = decode(json.dumps(customer).encode()), decode(VALUE)
    assert (reference_key(alone), has_sort_key(alone)) == (b'{"S":"c-1"}', False)
    assert (reference_key(both), has_sort_key(both)) == (item_key(both.body.keys), True)


PAID = {"dynamodb": {"NewImage": {"status": {"S": ["paid"]}}}}


def test_a_change_goes_to_the_first_route_that_matches() -> None:
    routed = flow(tables=["orders"], to=[{"sink": "paid", "where": PAID}, {"sink": "rest"}], on_leave="ignore")
    assert sinks(routed, VALUE) == ["paid"]
    assert sinks(routed, VALUE.replace(b'"paid"', b'"sent"')) == ["rest"]
    assert run(routed, VALUE.replace(b"table/orders", b"table/others")) == []


def test_a_change_goes_to_all_routes_that_match_when_the_flow_says_so() -> None:
    both = [{"sink": "paid", "where": PAID}, {"sink": "modified", "where": 'op == "u"'}]
    assert sinks(flow(to=both, match="all"), VALUE) == ["paid", "modified"]
    assert sinks(flow(to=both, match="all", otherwise="rest"), VALUE.replace(b'"paid"', b'"sent"')) == ["modified"]
    assert sinks(flow(to=["a", "b", "a"], match="all"), VALUE) == ["a", "b"]


def test_what_no_route_takes_goes_otherwise_or_nowhere() -> None:
    other = VALUE.replace(b'"paid"', b'"sent"')
    assert sinks(flow(to=[{"sink": "paid", "where": PAID}], otherwise="rest"), other) == ["rest"]
    assert sinks(flow(to=[{"sink": "paid", "where": PAID}]), other) == []


def test_a_template_names_the_sink_by_the_change() -> None:
    assert sinks(flow(to="{table}-{op}.{source}"), VALUE) == ["orders-u.dynamodb-stream"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"to": ["a", "b"]}, "to.0 takes everything, so to.1 never gets anything"),
        ({"otherwise": "b"}, "otherwise: never gets anything"),
        ({"to": "{tabel}"}, "to.0.sink"),
        ({"mask": [{"path": "email", "how": "hash"}]}, "mask_key: masks need a key"),
        ({"format": "avro"}, "format avro: needs the envelope plain or debezium, not dynamodb"),
        ({"enrich": [{**OWN, "on": "a"}]}, "joined by the item's own key: leave `on` out, or make it global"),
        ({"enrich": [{**OWN, "table": None, "topic": "t"}]}, 'a topic is read whole by every worker: state = "global"'),
        ({"enrich": [{**OWN, "state": "global"}]}, "needs on = the attribute that holds its key"),
        ({"enrich": [{**OWN, "on_reference_change": "re-emit"}]}, "needs from = the tables whose changes"),
        ({"enrich": [{"kind": "joyn"}]}, "kind: expected one of join, compute, sql, lookup, python"),
    ],
)
def test_a_flow_that_cannot_be_meant_says_why(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        flow(**settings)


def test_a_rejected_change_leaves_the_others_of_its_batch_alone() -> None:
    without = VALUE.replace(b'"status"', b'"nothing"')
    good, bad, after = run(flow(where='after.status == "paid"'), VALUE, without, VALUE)
    assert [len(result.messages) for result in (good, bad, after)] == [1, 0, 1]
    assert (bad.stage, str(bad.error)) == ("where", "after.status == \"paid\": there is no 'status': ask has() first")


def test_a_flow_without_patterns_takes_everything_undecoded() -> None:
    whole = flow()
    assert whole.look is None
    assert [message.value for result in run(whole, VALUE) for message in result.messages] == [VALUE]


def test_the_headers_of_a_sink_message_are_the_contract() -> None:
    assert headers(decode(VALUE)) == [
        ("event_id", b"c4ca4238a0b923820dcc509a6f75849b"),
        ("table", b"orders"),
        ("op", b"u"),
        ("source", b"dynamodb-stream"),
        ("ts_us", b"1479499740000000"),
        ("sequence", b"4421584500000000017450439091"),
    ]
