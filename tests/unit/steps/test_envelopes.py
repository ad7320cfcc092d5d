"""The envelopes: what is written to a sink topic."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cloudevents.kafka import KafkaMessage, from_binary, from_structured
from support.made_events import done, event, record

from pipeline.settings.formats import EnvelopeSettings
from pipeline.steps.envelope import compile_envelope
from pipeline.steps.event import Event
from pipeline.steps.plain import plain_value
from pipeline.steps.shape import drop

ORDER: dict[str, Any] = {
    "id": {"S": 'o "1"'},
    "total": {"N": "12345678901234567890.123456789"},
    "tiny": {"N": "1E-130"},
    "gift": {"BOOL": True},
    "coupon": {"NULL": True},
    "seal": {"B": "AP8="},
    "tags": {"SS": ["b", "a"]},
    "sizes": {"NS": ["10", "-2.5", "9"]},
    "parts": {"L": [{"S": "x"}, {"N": "1.50"}, {"M": {"deep": {"L": []}}}]},
}
PLAIN = {
    "id": 'o "1"',
    "total": "12345678901234567890.123456789",
    "tiny": "1E-130",
    "gift": True,
    "coupon": None,
    "seal": "AP8=",
    "tags": ["a", "b"],
    "sizes": ["-2.5", "9", "10"],
    "parts": ["x", "1.50", {"deep": []}],
}


def written(settings: dict[str, Any] | str, value: bytes, added: dict[str, Any] | None = None) -> Event:
    one = event(value)
    raw = type(one.change.body.keys)
    one.added = {name: raw(json.dumps(value).encode()) for name, value in (added or {}).items()}
    whole = {"kind": settings} if isinstance(settings, str) else settings
    compile_envelope(EnvelopeSettings.model_validate(whole))([one])
    assert one.error is None
    return one


def exact(output: bytes | None) -> Any:
    """Decode with numbers as the text that they were."""
    assert output is not None
    return json.loads(output, parse_float=str, parse_int=str)


def test_plain_json_keeps_every_digit() -> None:
    assert exact(written("plain", record(ORDER)).output) == PLAIN
    numbers = json.loads(written({"kind": "plain", "numbers": "string"}, record(ORDER)).output or b"")
    assert numbers == PLAIN


def test_plain_json_has_what_was_added_beside_the_items_own() -> None:
    customer = {"customer": {"M": {"tier": {"S": "gold"}}}, "gift": {"N": "5"}}
    found = exact(written("plain", record(ORDER), customer).output)
    assert found == {**PLAIN, "customer": {"tier": "gold"}, "gift": "5"}


def test_a_deletion_is_a_tombstone_or_the_old_item() -> None:
    deletion = record(None, ORDER)
    assert written("plain", deletion).output is None
    assert exact(written({"kind": "plain", "tombstone": False}, deletion).output) == PLAIN


def test_debezium_has_both_images_and_where_it_came_from() -> None:
    found = exact(written("debezium", record(ORDER, {**ORDER, "gift": {"BOOL": False}}, number=7)).output)
    assert set(found) == {"before", "after", "source", "op", "ts_ms", "ts_us", "ts_ns", "transaction"}
    assert (found["op"], found["after"], found["before"]["gift"]) == ("u", PLAIN, False)
    assert (found["ts_ms"], found["ts_us"]) == ("1764000007000", "1764000007000000")
    assert found["ts_ns"] == "1764000007000000000"
    assert found["transaction"] is None
    source = found["source"]
    assert (source["connector"], source["table"], source["snapshot"]) == ("headwater", "orders", "false")
    assert source["sequence"] == f"{7:021d}"
    assert exact(written("debezium", record(ORDER)).output)["before"] is None


CONFLUENT = {
    *("version", "tableName", "sync_mode", "ts_ms", "ts_us", "ts_ns", "snapshotStartTime", "snapshotCount"),
    *("segment", "totalSegments", "shard_id", "seq_no"),
}
"""The keys of `source` in the schema that Confluent's Amazon DynamoDB CDC connector registers."""


def test_debezium_has_the_keys_of_confluents_connector() -> None:
    value = record(ORDER, {**ORDER, "gift": {"BOOL": False}}, number=7)
    found = exact(written({"kind": "debezium", "images": "document"}, value).output)
    assert found["source"].keys() >= CONFLUENT
    assert (found["source"]["tableName"], found["source"]["sync_mode"]) == ("orders", "CDC")
    assert found["source"]["seq_no"] == f"{7:021d}"
    assert json.loads(found["after"]["document"]) == json.loads(value)["dynamodb"]["NewImage"]
    assert json.loads(found["before"]["document"])["gift"] == {"BOOL": False}
    row = json.loads(value) | {"eventName": "READ"}
    del row["dynamodb"]["SequenceNumber"]
    source = exact(written("debezium", json.dumps(row).encode()).output)["source"]
    assert (source["sync_mode"], source["seq_no"], source["shard_id"]) == ("SNAPSHOT", None, None)


@pytest.mark.parametrize(
    ("settings", "follows"), [("debezium", False), ({"kind": "debezium", "tombstone": True}, True)]
)
def test_a_tombstone_follows_where_it_was_asked_for(settings: Any, follows: bool) -> None:
    whole = {"kind": settings} if isinstance(settings, str) else settings
    assert compile_envelope(EnvelopeSettings.model_validate(whole)).tombstone_follows is follows


def test_as_aws_gives_it_byte_for_byte_until_a_step_has_changed_it() -> None:
    value = record(ORDER, ORDER)
    assert written("dynamodb", value).output == value
    assert (written("dynamodb", value, {"n": {"N": "1"}}).output or b"").startswith(value[:-1])
    (one,) = done(drop(["total"]), value)
    compile_envelope(EnvelopeSettings())([one])
    found = json.loads(one.output or b"")
    was = json.loads(value)
    assert "total" not in found["dynamodb"]["NewImage"]
    assert "total" not in found["dynamodb"]["OldImage"]
    del was["dynamodb"]["NewImage"]["total"], was["dynamodb"]["OldImage"]["total"], was["dynamodb"]["SizeBytes"]
    assert found == was


def test_what_is_not_an_attribute_value_is_rejected() -> None:
    for odd in ({"X": "1"}, {}, {"N": "one"}, {"N": "NaN"}, {"L": [{"S": 1, "Y": 2}]}):
        (one,) = done(compile_envelope(EnvelopeSettings(kind="plain")), record({"id": {"S": "1"}, "a": odd}))
        assert isinstance(one.error, ValueError), odd


def test_cloudevents_in_both_modes_are_what_cncf_takes_for_events() -> None:
    binary = written("cloudevents", record(ORDER))
    found = from_binary(message(binary))
    assert found["type"] == "headwater.change.insert"
    assert found["source"] == "arn:aws:dynamodb:eu-west-1:123456789012:table/orders"
    assert (found["id"], found["specversion"]) == ("e-1", "1.0")
    structured = written({"kind": "cloudevents", "mode": "structured"}, record(ORDER))
    whole = from_structured(message(structured))
    assert whole["subject"] == (structured.key or b"").decode()
    assert whole["time"] == "2025-11-24T16:00:01.000000Z"
    assert exact(structured.output)["data"]["after"] == PLAIN
    assert set(whole.get_data() or {}) == {"before", "after"}


def message(one: Event) -> KafkaMessage:
    return KafkaMessage(headers=dict(one.headers), key=one.key, value=one.output or b"")


@pytest.mark.parametrize(
    "value",
    [
        '{"S":5}',
        '{"S":{"a":1}}',
        '{"S":null}',
        '{"B":5}',
        '{"S":"x","N":"1"}',
        '{"NULL":false}',
        "{}",
        "[]",
        '{"X":"y"}',
        '{"L":[{"S":5}]}',
        '{"M":{"a":{"S":"x","BOOL":true}}}',
        '{"N":"Infinity"}',
        '{"N":1}',
        '{"SS":[1]}',
    ],
)
def test_what_is_not_an_attribute_value_is_not_added(value: str) -> None:
    with pytest.raises(ValueError, match=r"value|number"):
        plain_value(value.encode())
