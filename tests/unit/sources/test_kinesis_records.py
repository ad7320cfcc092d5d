"""Records of Kinesis as changes: what DynamoDB delivers, what applications put, what producers pack together."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from pydantic import ValidationError
from support.paths import EVENTS

from models.change import decode
from pipeline.settings.sources import KinesisSettings
from pipeline.sources.base import Unreadable
from pipeline.sources.kinesis.kpl import MAGIC, Sub, aggregate
from pipeline.sources.kinesis.records import Put, changes, cut_kinesis, read_record

DELIVERED = (EVENTS / "kinesis-dynamodb-modify.json").read_bytes()
ARN = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders"
SHARD = "shardId-000000000001"
AS_DYNAMODB = KinesisSettings(kind="kinesis", streams=("*",))
AS_JSON = KinesisSettings(kind="kinesis", streams=("*",), codec="json")
AS_BYTES = KinesisSettings(kind="kinesis", streams=("*",), codec="bytes")


def put(data: bytes) -> Put:
    return Put(ARN, SHARD, "49", "user-1", 1_795_474_571.123, data)


def one(data: bytes, how: KinesisSettings) -> Any:
    (found,) = changes(put(data), how)
    assert not isinstance(found, Unreadable)
    return json.loads(found["value"])


def body(*data: bytes, **more: Any) -> bytes:
    records = [
        {
            "Data": base64.b64encode(one).decode(),
            "PartitionKey": "user-1",
            "SequenceNumber": str(49 + number),
            "ApproximateArrivalTimestamp": 1.795474571123e9,
        }
        for number, one in enumerate(data)
    ]
    return json.dumps({"Records": records, "MillisBehindLatest": 0, "NextShardIterator": "next"} | more).encode()


def test_what_dynamodb_delivers_passes_byte_by_byte() -> None:
    (found,) = cut_kinesis(read_record(body(DELIVERED), ARN, SHARD), AS_DYNAMODB).records
    assert found["value"] == DELIVERED
    assert found["key"] == b'{"line":{"N":"3"},"order_id":{"S":"o-1"}}'
    change = decode(found["value"])
    assert (change.table, change.op, change.source) == ("orders", "u", "kinesis")
    assert change.ts_us == 1_795_474_571_123_456


@pytest.mark.parametrize(
    ("created", "precision", "microseconds"),
    [
        (1_795_474_571_123, "MILLISECOND", 1_795_474_571_123_000),
        (1_795_474_571_123_456, "MICROSECOND", 1_795_474_571_123_456),
        (1_795_474_571_123, None, 1_795_474_571_123_000),
    ],
)
def test_trap_14_a_time_is_read_in_the_precision_that_the_record_names(
    created: int, precision: str | None, microseconds: int
) -> None:
    changed = json.loads(DELIVERED)
    changed["dynamodb"] |= {"ApproximateCreationDateTime": created, "ApproximateCreationDateTimePrecision": precision}
    if precision is None:
        del changed["dynamodb"]["ApproximateCreationDateTimePrecision"]
    assert decode(json.dumps(changed).encode()).ts_us == microseconds


def test_a_json_object_of_an_application_looks_like_a_change() -> None:
    value = one(b'{"id": 7, "total": 1.10, "tags": ["a", null], "paid": false}', AS_JSON)
    assert value == {
        "eventID": "orders:shardId-000000000001:49",
        "eventName": "INSERT",
        "eventSource": "aws:kinesis",
        "eventSourceARN": ARN,
        "tableName": "orders",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_795_474_571_123,
            "ApproximateCreationDateTimePrecision": "MILLISECOND",
            "Keys": {"partition_key": {"S": "user-1"}},
            "NewImage": {
                "id": {"N": "7"},
                "total": {"N": "1.10"},
                "tags": {"L": [{"S": "a"}, {"NULL": True}]},
                "paid": {"BOOL": False},
            },
            "SequenceNumber": "49",
        },
    }
    change = decode(json.dumps(value).encode())
    assert (change.source, change.table, change.ts_us) == ("kinesis", "orders", 1_795_474_571_123_000)


def test_anything_else_is_carried_as_bytes() -> None:
    assert one(b"\x00\xff", AS_BYTES)["dynamodb"]["NewImage"] == {"data": {"B": "AP8="}}


def test_the_event_id_can_come_from_a_field() -> None:
    how = AS_JSON.model_copy(update={"event_id_field": "id"})
    assert one(b'{"id": "e-1"}', how)["eventID"] == "orders:e-1"
    assert one(b'{"id": 12}', how)["eventID"] == "orders:12"
    (found,) = changes(put(b'{"id": null}'), how)
    assert isinstance(found, Unreadable)
    assert "the field id" in str(found.error)


def test_bytes_have_no_field_for_an_event_id() -> None:
    with pytest.raises(ValidationError, match="only records of codec"):
        KinesisSettings(kind="kinesis", streams=("*",), codec="bytes", event_id_field="id")


@pytest.mark.parametrize(
    ("data", "how", "words"),
    [
        (b"{", AS_JSON, "line 1"),
        (b"[1]", AS_JSON, "not a JSON object"),
        (b'{"a": NaN}', AS_JSON, "not JSON"),
        (b'{"a": 1, "a": 2}', AS_JSON, "twice"),
        (b'{"a": "\\ud800"}', AS_JSON, "surrogate"),
        (b'{"a":' + b"[" * 100_000, AS_JSON, "recursion"),
        (b"\xff", AS_JSON, "utf-8"),
        (b"{}", AS_DYNAMODB, "eventID"),
        (b'{"eventID":"1","eventName":"X","tableName":"t","dynamodb":{"Keys":{}}}', AS_DYNAMODB, "unknown"),
        (b"not json", AS_DYNAMODB, "malformed"),
    ],
)
def test_what_cannot_be_read_is_kept_as_it_came_with_the_reason(data: bytes, how: KinesisSettings, words: str) -> None:
    found = cut_kinesis(read_record(body(data), ARN, SHARD), how)
    ((value, error, *_),) = found.unreadable
    assert value == data
    assert words in str(error)
    assert found.last == "49", "the position passes it: it is in the dead-letter topic"


def test_trap_15_records_that_share_a_sequence_number_are_told_apart_by_their_place_in_it() -> None:
    packed = aggregate([Sub("a", b'{"n":1}'), Sub("b", b'{"n":2}'), Sub("a", b"broken")])
    found = cut_kinesis(read_record(body(packed, b'{"n":3}'), ARN, SHARD), AS_JSON)
    ids = [json.loads(record["value"])["eventID"] for record in found.records]
    assert ids == [f"orders:{SHARD}:{place}" for place in ("49:0", "49:1", "50")]
    assert [record["key"] for record in found.records[:2]] == [
        b'{"partition_key":{"S":"a"}}',
        b'{"partition_key":{"S":"b"}}',
    ]
    assert [bad.value for bad in found.unreadable] == [b"broken"]
    assert (found.first, found.last) == ("49", "50")


def test_an_aggregated_record_with_a_wrong_checksum_is_unreadable_as_a_whole() -> None:
    damaged = aggregate([Sub("a", b"{}")])[:-1] + b"\x00"
    (found,) = changes(put(damaged), AS_BYTES)
    assert isinstance(found, Unreadable)
    assert found.value == damaged
    assert "checksum" in str(found.error)


def test_an_empty_answer_says_when_to_ask_again_and_whether_there_is_more() -> None:
    found = cut_kinesis(
        read_record(b'{"Records":[],"NextShardIterator":"n","MillisBehindLatest":5}', ARN, SHARD), AS_JSON
    )
    assert (found.records, found.last, found.next_iterator, found.behind) == ([], None, "n", True)
    assert found.wait == 0.2, "five calls a second"
    large = cut_kinesis(read_record(body(b"x" * (4 << 20)), ARN, SHARD), AS_BYTES)
    assert large.wait == pytest.approx(2.0, rel=0.01), "2 MiB a second"


def test_what_only_begins_like_an_aggregated_record_is_unreadable() -> None:
    (found,) = changes(put(MAGIC), AS_BYTES)
    assert isinstance(found, Unreadable)
