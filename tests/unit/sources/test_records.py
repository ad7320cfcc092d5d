"""Cutting GetRecords bodies: bytes in, changes out, nothing lost."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from support.paths import EVENTS

from models.change import MalformedChangeError, decode, event_id, table_of
from pipeline.errors import backoff
from pipeline.sources.dynamodb.records import cut_answer, item_key_of

ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-11-23T00:00:00.000"


def body(*records: Any, iterator: str | None = "next") -> bytes:
    return json.dumps({"Records": list(records), "NextShardIterator": iterator}).encode()


def record(**more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EVENTS / "dynamodb-stream-modify.json").read_text())
    return found | more


def test_a_record_comes_out_as_a_lambda_trigger_would_get_it() -> None:
    found = cut_answer(body(record()), ARN)
    (only,) = found.records
    assert json.loads(only["value"]) == {**record(), "eventSourceARN": ARN}
    assert only["key"] == b'{"line":{"N":"3"},"order_id":{"S":"o-1"}}'
    assert found.last == "4421584500000000017450439091"
    assert found.next_iterator == "next"


def test_numbers_of_38_digits_keep_every_digit() -> None:
    digits = "12345678901234567890123456789012345678"
    changed = record()
    changed["dynamodb"]["NewImage"]["total"] = {"N": digits}
    assert f'"N": "{digits}"'.encode() in cut_answer(body(changed), ARN).records[0]["value"]


def test_the_last_answer_of_a_shard_can_hold_records_and_no_iterator() -> None:
    found = cut_answer(body(record(), iterator=None), ARN)
    assert len(found.records) == 1
    assert found.next_iterator is None


def test_an_empty_answer_is_not_an_end() -> None:
    found = cut_answer(b'{"Records":[],"NextShardIterator":"n"}', ARN)
    assert (found.records, found.last, found.next_iterator) == ([], None, "n")


def test_an_unreadable_record_is_kept_as_it_came_and_the_others_continue() -> None:
    broken = {"eventID": "1", "dynamodb": {"SequenceNumber": "9" * 21}}
    found = cut_answer(body(record(), broken), ARN)
    assert len(found.records) == 1
    ((value, error, *_),) = found.unreadable
    assert json.loads(value) == broken
    assert "Keys" in str(error)
    assert found.last == "9" * 21, "the position passes it: it is in the dead-letter topic"


def test_a_body_that_is_not_an_answer_is_an_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        cut_answer(b"<html>", ARN)


def test_a_deletion_by_time_to_live_is_spelled_as_lambda_spells_it() -> None:
    by_ttl = record(userIdentity={"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"})
    value = cut_answer(body(by_ttl), ARN).records[0]["value"]
    assert json.loads(value)["userIdentity"] == {"principalId": "dynamodb.amazonaws.com", "type": "Service"}


def test_the_item_key_does_not_depend_on_the_order_of_its_attributes() -> None:
    assert item_key_of(b'{"b":{"N":"1"},"a":{"S":"x"}}') == item_key_of(b'{ "a": {"S": "x"}, "b": {"N": "1"} }')


def test_a_change_tells_what_it_is() -> None:
    change = decode(cut_answer(body(record()), ARN).records[0]["value"])
    assert (change.table, change.op, change.source) == ("orders", "u", "dynamodb-stream")
    assert change.ts_us == 1_479_499_740_000_000
    assert json.loads(change.after or b"")["status"] == {"S": "paid"}
    assert json.loads(change.before or b"")["status"] == {"S": "open"}


def test_a_deletion_has_no_after() -> None:
    change = decode(
        json.dumps({**record(eventName="REMOVE"), "tableName": "t"}).encode().replace(b'"NewImage"', b'"x"')
    )
    assert change.after is None
    assert change.before is not None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"not json", "not a change"),
        (b"{}", "eventID"),
        (b'{"eventID":""}', "eventID is empty"),
        (b"\xff\xfe", "not a change"),
        (b"", "not a change"),
    ],
)
def test_what_has_no_event_id_is_malformed(value: bytes, words: str) -> None:
    with pytest.raises(MalformedChangeError, match=words):
        event_id(value)


def test_an_unknown_event_name_is_malformed() -> None:
    with pytest.raises(MalformedChangeError, match="unknown eventName 'UPSERT'"):
        decode(json.dumps(record(eventName="UPSERT", eventSourceARN=ARN)).encode())


def test_the_table_is_in_the_arn() -> None:
    assert table_of(ARN) == "orders"
    assert table_of("nonsense") == ""


def test_the_pause_after_errors_grows_to_ten_seconds_and_never_fails() -> None:
    assert 0.1 <= backoff(1) <= 0.2
    assert all(5 <= backoff(errors) <= 10 for errors in (7, 100, 5_000))  # three hours of throttling are 1,100
