"""The steps, alone: batch in, batch out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from models.change import decode
from pipeline.errors import UsageError
from pipeline.flows import compile_flow
from pipeline.settings import Flow
from pipeline.steps.deduplicate import deduplicate
from pipeline.steps.enrich import JoinStep, enrich, reference_key
from pipeline.steps.filter import PatternError, compile_pattern
from pipeline.steps.route import headers, run_flow

ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-11-23T00:00:00.000"
RECORD = json.loads((Path(__file__).parents[1] / "events" / "dynamodb-stream-modify.json").read_text())
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


def test_what_has_no_event_id_is_rejected_and_the_rest_goes_on() -> None:
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
    flow = Flow.model_validate({"name": "f", "where": {"a": 1}, "to": [{"sink": "s"}]})
    with pytest.raises(UsageError, match="flow f, where: a: expected"):
        compile_flow(flow, {})


def test_a_join_adds_the_item_and_keeps_every_byte_of_the_change() -> None:
    items = {b'{"S":"c-1"}': b'{"name":{"S":"Ada"}}'}
    value = enrich(VALUE, decode(VALUE), [JoinStep("customer_id", "customer", items.get)])
    assert value.startswith(VALUE[:-1])
    assert json.loads(value)["enriched"] == {"customer": {"name": {"S": "Ada"}}}
    assert decode(value).enriched == b'{"customer":{"name":{"S":"Ada"}}}'


@pytest.mark.parametrize("on", ["status", "nothing"])
def test_a_join_that_finds_nothing_gives_null(on: str) -> None:
    value = enrich(VALUE, decode(VALUE), [JoinStep(on, "customer", lambda _: None)])
    assert json.loads(value)["enriched"] == {"customer": None}


def test_a_reference_is_looked_up_by_the_value_of_its_only_key_attribute() -> None:
    customer = {**RECORD, "tableName": "customers", "dynamodb": {"Keys": {"id": {"S": "c-1"}}}}
    assert reference_key(decode(json.dumps(customer).encode())) == b'{"S":"c-1"}'
    with pytest.raises(ValueError, match="2 key attributes"):
        reference_key(decode(VALUE))


def test_a_change_goes_to_the_first_route_that_matches() -> None:
    paid = {"dynamodb": {"NewImage": {"status": {"S": ["paid"]}}}}
    flow = compile_flow(
        Flow.model_validate(
            {"name": "f", "from": ["orders"], "to": [{"sink": "paid", "where": paid}, {"sink": "rest"}]}
        ),
        {},
    )
    assert [message.sink for message in run_flow(flow, VALUE, decode(VALUE))] == ["paid"]
    other = VALUE.replace(b'"paid"', b'"sent"')
    assert [message.sink for message in run_flow(flow, other, decode(other))] == ["rest"]
    foreign = VALUE.replace(b"table/orders", b"table/others")
    assert list(run_flow(flow, foreign, decode(foreign))) == []


def test_a_flow_without_patterns_takes_everything_undecoded() -> None:
    flow = compile_flow(Flow.model_validate({"name": "f", "to": [{"sink": "all"}]}), {})
    assert flow.look is None
    assert [message.value for message in run_flow(flow, VALUE, decode(VALUE))] == [VALUE]


def test_the_headers_of_a_sink_message_are_the_contract() -> None:
    assert headers(decode(VALUE)) == [
        ("event_id", b"c4ca4238a0b923820dcc509a6f75849b"),
        ("table", b"orders"),
        ("op", b"u"),
        ("source", b"dynamodb-stream"),
        ("ts_us", b"1479499740000000"),
        ("sequence", b"4421584500000000017450439091"),
    ]
