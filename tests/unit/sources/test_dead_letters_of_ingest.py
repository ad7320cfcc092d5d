"""Dead letters of ingest: what they keep, and that it is enough to have them read again."""

from __future__ import annotations

import base64
import json
from typing import Any, cast

import msgspec
import pytest
from confluent_kafka import Message

from models.change import decode
from models.dead_letter import LATE, Origin, origin_in
from pipeline.errors import UsageError
from pipeline.operate.dead_letters import StoredDeadLetter, _again, letter
from pipeline.settings.root import Settings
from pipeline.sources.base import Unreadable
from pipeline.sources.dynamodb.records import cut_answer as cut_streams
from pipeline.sources.kinesis.records import Answer, Put, cut_kinesis
from pipeline.sources.members import codec_of, item, read_again
from pipeline.steps.late import marked
from pipeline.topics.names import Topics
from pipeline.transport.partition import partition_of

CLICKS = "arn:aws:kinesis:eu-west-1:1:stream/clicks"
ORDERS = "arn:aws:dynamodb:eu-west-1:1:table/orders/stream/2026-01-01T00:00:00.000"
SETTINGS = Settings.model_validate(
    {"sources": [{"kind": "kinesis", "streams": ["clicks"], "codec": "json"}, {"tables": ["orders"]}], "partitions": 8}
)
PUT = Put(CLICKS, "shardId-000000000003", "4951", "customer 7", 1_700_000_000.5, b'{"n": oops}')


class Kept:
    """A record of the dead-letter topic."""

    def __init__(self, headers: list[tuple[str, bytes]], key: bytes | None, value: bytes | None) -> None:
        self._headers, self._key, self._value = headers, key, value

    def headers(self) -> list[tuple[str, bytes]]:
        return self._headers

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_100_250


def letter_of(
    unreadable: Unreadable, arn: str = f"{CLICKS}/1700000000", shard_id: str = PUT.shard_id
) -> StoredDeadLetter:
    written = unreadable.letter(arn, shard_id, "clicks")
    return letter(cast("Message", Kept(written.headers, written.key, written.value)))


def of_kinesis(data: bytes = PUT.data, codec: str = "json") -> StoredDeadLetter:
    how: Any = codec_of(settings(codec), "clicks")
    (unreadable,) = cut_kinesis(Answer([PUT._replace(data=data)], None), how).unreadable
    return letter_of(unreadable)


def settings(codec: str) -> Settings:
    return Settings.model_validate(
        {"sources": [{"kind": "kinesis", "streams": ["clicks"], "codec": codec}], "partitions": 8}
    )


def test_a_dead_letter_of_ingest_keeps_what_is_needed_to_read_it_again() -> None:
    one = of_kinesis()
    assert one.value == PUT.data
    assert one.key == b'{"partition_key":{"S":"customer 7"}}'
    assert one.origin == Origin(CLICKS, PUT.shard_id, "4951", "clicks", "customer 7", 1_700_000_000.5)
    assert one.headers == (), "they are not headers of the message itself"
    assert one.json()["origin"]["partition_key"] == "customer 7"


def test_a_corrected_record_goes_through_the_codec_with_its_partition_key_and_place() -> None:
    (record,) = _again(SETTINGS, of_kinesis(), b'{"n": 8.10}')
    topic, key, value, partition, headers = record
    (as_if_read,) = cut_kinesis(Answer([PUT._replace(data=b'{"n": 8.10}')], None), codec_of(SETTINGS, "clicks")).records
    assert (topic, key, value) == (Topics(SETTINGS).ingest, as_if_read["key"], as_if_read["value"])
    assert partition == partition_of(key or b"", 8)
    assert headers == [(LATE, b"1700000100250000")], "newer changes of its item may be on raw already"
    change = decode(value or b"")
    assert (change.event_id, change.table) == ("clicks:shardId-000000000003:4951", "clicks")


def test_a_dead_letter_that_the_codec_refuses_again_is_refused_with_a_clear_line() -> None:
    for value in (None, b"", b"[1]", b"\xff", b"[" * 100_000):
        with pytest.raises(UsageError, match=r"0-7: it cannot be read as the codec json of clicks: ") as told:
            _again(SETTINGS, of_kinesis(), value)
        assert "dlq edit 0-7" in told.value.hint


def test_a_dead_letter_is_read_again_by_the_codec_that_the_settings_have_now() -> None:
    (record,) = _again(settings("bytes"), of_kinesis(), None)
    assert json.loads(record[2] or b"")["dynamodb"]["NewImage"]["data"] == {"B": base64.b64encode(PUT.data).decode()}


def test_an_edited_delivery_of_dynamodb_must_be_of_its_item() -> None:
    broken = {"eventID": "e", "eventName": "?", "tableName": "t", "dynamodb": {"Keys": {"id": {"S": "a"}}}}
    one = of_kinesis(json.dumps(broken).encode(), "dynamodb")
    assert one.key == b'{"id":{"S":"a"}}'
    (record,) = _again(settings("dynamodb"), one, json.dumps(broken | {"eventName": "INSERT"}).encode())
    assert record[1] == one.key
    other = broken | {"eventName": "INSERT", "dynamodb": {"Keys": {"id": {"S": "b"}}}}
    with pytest.raises(UsageError, match="about the item"):
        _again(settings("dynamodb"), one, json.dumps(other).encode())


def test_a_part_of_an_aggregated_record_keeps_its_number_and_its_own_partition_key() -> None:
    part = PUT._replace(partition_key="sub")
    unreadable = Unreadable(b"oops", ValueError("x"), None, part.origin(":4"))
    (record,) = _again(SETTINGS, letter_of(unreadable), b"{}")
    assert decode(record[2] or b"").event_id == "clicks:shardId-000000000003:4951:4"
    assert record[1] == b'{"partition_key":{"S":"sub"}}'


def test_a_record_of_a_table_s_stream_is_corrected_with_its_arn_and_item_key() -> None:
    body = {"eventID": "e1", "eventName": "INSERT", "dynamodb": {"SequenceNumber": "12", "Keys": {"id": {"S": "a"}}}}
    broken = body | {"dynamodb": {"SequenceNumber": "12", "Keys": 7}}
    (unreadable,) = cut_streams(json.dumps({"Records": [broken]}).encode(), ORDERS).unreadable
    one = letter_of(unreadable, ORDERS, "shardId-1")
    assert one.origin == Origin(ORDERS, "shardId-1", "12", "clicks")
    with pytest.raises(UsageError, match="a record of DynamoDB Streams"):
        _again(SETTINGS, one, None)
    for mended in (body, body | {"eventSourceARN": ORDERS}):
        (record,) = _again(SETTINGS, one, json.dumps(mended, indent=2).encode())
        assert record[1] == b'{"id":{"S":"a"}}'
        assert decode(record[2] or b"").arn == ORDERS


def test_a_dead_letter_of_an_earlier_version_without_its_place_is_refused_where_the_codec_needs_it() -> None:
    one = of_kinesis()
    old = StoredDeadLetter(
        **{**{name: getattr(one, name) for name in StoredDeadLetter.__slots__}, "origin": None, "key": None}
    )
    with pytest.raises(UsageError, match="its partition key and sequence number are not known"):
        _again(SETTINGS, old, b"{}")


def test_a_dead_letter_of_deduplicate_that_is_tried_again_is_late_too() -> None:
    one = of_kinesis()
    fields = {name: getattr(one, name) for name in StoredDeadLetter.__slots__}
    rejected = StoredDeadLetter(
        **{**fields, "stage": "deduplicate", "topic": Topics(SETTINGS).ingest, "partition": 3, "origin": None}
    )
    ((_, _, value, partition, headers),) = _again(SETTINGS, rejected, None)
    assert (value, partition, headers) == (PUT.data, 3, [(LATE, b"1700000100250000")])


def test_what_says_itself_that_it_is_late_is_marked_on_raw() -> None:
    assert marked([[], [(LATE, b"12")], [("other", b"1")], [(LATE, b"x")], [(LATE, None)]]) == {1: 12}


def test_origins_come_back_out_of_their_headers() -> None:
    for origin in (PUT.origin(":1"), Origin(ORDERS, "s", "1", "orders"), Origin("lambda", form="lambda")):
        assert origin_in({name: value.decode() for name, value in origin.headers}) == origin
    assert origin_in({}) is None


# -- members of Lambda events -----------------------------------------------------------------------------------------


def member(**more: Any) -> dict[str, Any]:
    found = {"partitionKey": "p", "sequenceNumber": "495", "approximateArrivalTimestamp": 1545084650.987}
    data = base64.b64encode(b'{"n":1}').decode()
    return {
        "eventSource": "aws:kinesis",
        "eventID": "shardId-000000000006:495",
        "eventSourceARN": CLICKS,
        "kinesis": {**found, "data": data},
        **more,
    }


@pytest.mark.parametrize("behind", ["", "/consumer/app:1540591608", "/1700000000"])
def test_what_is_behind_a_stream_in_its_arn_is_not_its_name(behind: str) -> None:
    found = item(member(eventSourceARN=f"{CLICKS}{behind}"), SETTINGS)
    (record,) = found.parts
    assert not isinstance(record, Unreadable)
    change = decode(record["value"])
    assert (change.table, change.arn) == ("clicks", CLICKS)
    assert change.event_id == "clicks:shardId-000000000006:495"


MALFORMED: list[Any] = [
    {},
    {"eventSource": "aws:sqs", "body": "x"},
    {"eventSource": "aws:kinesis"},
    member(kinesis=None),
    member(kinesis={"data": "x"}),
    member(eventID=None),
    member(eventSourceARN=7),
    member(eventSourceARN="arn:aws:sqs:eu-west-1:1:q"),
    member(kinesis={**member()["kinesis"], "data": "no base64!"}),
    member(kinesis={**member()["kinesis"], "approximateArrivalTimestamp": "soon"}),
    {"eventSource": "aws:dynamodb", "dynamodb": {"Keys": None}},
    {"eventSource": "aws:dynamodb", "dynamodb": "x"},
    {"eventSource": ["x"]},
    None,
    "text",
    7,
    [[]],
]


@pytest.mark.parametrize("bad", MALFORMED, ids=repr)
def test_a_malformed_member_of_a_lambda_event_fails_no_batch(bad: Any) -> None:
    (part,) = item(bad, SETTINGS).parts
    assert isinstance(part, Unreadable)
    assert msgspec.json.decode(part.value) == bad, "all of it is kept"
    assert "\n" not in str(part.error)


def test_a_malformed_member_that_was_corrected_is_read_as_a_member() -> None:
    bad = member(kinesis={**member()["kinesis"], "data": "no base64!"})
    found = item(bad, SETTINGS)
    (part,) = found.parts
    assert isinstance(part, Unreadable)
    assert (found.sequence, part.origin.shard, part.origin.form) == ("495", "shardId-000000000006", "lambda")
    (record,) = read_again(SETTINGS, json.dumps(member()).encode(), part.origin)
    (wanted,) = item(member(), SETTINGS).parts
    assert record == wanted
