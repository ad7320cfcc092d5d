"""The replica without Kafka and AWS: versions, what is put together, what each answer of DynamoDB means."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from confluent_kafka import Message
from support.dynamodb_in_memory import FakeDynamoDB, refused

from models.change import decode
from pipeline.errors import FatalError, RejectedError, TransientError
from pipeline.settings.sinks import ReplicaSettings
from pipeline.sinks.base import Flushed
from pipeline.sinks.replica.changes import newest_first, write_of
from pipeline.sinks.replica.sink import ReplicaWriter
from pipeline.sinks.replica.table import KEY_BYTES, ReplicaTable, meaning, version_id
from pipeline.sinks.versions import ROW_AGE, version

SECOND = 1_764_000_000
REPLICA = ReplicaSettings(sinks=("s",), table="copy-of-{table}")
KEYS = {"copy-of-orders": "id", "orders.versions": "item"}


def value(op: str, number: str = "1", *, at: float = SECOND, key: str = "a", image: Any = None, **more: Any) -> bytes:
    new = {} if op == "REMOVE" else {"NewImage": {"id": {"S": key}, **(image or {"n": {"N": number}})}}
    body = {"Keys": {"id": {"S": key}}, "ApproximateCreationDateTime": at, "SequenceNumber": number, **new}
    return json.dumps(
        {"eventID": f"e{number}", "eventName": op, "tableName": "orders", "dynamodb": body, **more}
    ).encode()


class Record:
    """What the replica reads of a Kafka message."""

    def __init__(self, value: bytes, offset: int = 0) -> None:
        self._value, self._offset = value, offset
        self.said: list[tuple[str, bytes]] = []

    def value(self) -> bytes:
        return self._value

    def offset(self) -> int:
        return self._offset

    def headers(self) -> list[tuple[str, bytes]]:
        return self.said

    def __len__(self) -> int:
        return len(self._value)


def message(value: bytes, offset: int = 0) -> Message:
    return cast("Message", Record(value, offset))


def of(value: bytes, offset: int = 0) -> str:
    return version(decode(value), offset)


def test_versions_grow_by_time_then_by_sequence_number_as_a_number() -> None:
    ordered = [
        of(value("MODIFY", "99999", at=SECOND - 1)),
        of(value("MODIFY", "9")),
        of(value("MODIFY", "10")),
        of(value("MODIFY", "4" * 40)),
        of(value("REMOVE", "1", at=SECOND + 1)),
    ]
    assert ordered == sorted(ordered)
    assert len(set(map(len, ordered))) == 1


def test_a_row_of_a_snapshot_is_older_than_any_change_near_its_time() -> None:
    row = of(value("READ", "", at=SECOND), offset=7)
    assert row < of(value("MODIFY", "0"))
    assert row < of(value("MODIFY", "0", at=SECOND - ROW_AGE / 1e6 + 1))
    assert row < of(value("MODIFY", "0", at=SECOND - ROW_AGE / 1e6))
    assert row > of(value("MODIFY", "9", at=SECOND - ROW_AGE / 1e6 - 1))


def test_changes_without_a_sequence_number_are_ordered_by_their_time_then_by_where_they_are() -> None:
    kinesis = {"recordFormat": "application/json"}
    early = of(value("MODIFY", "", at=SECOND * 1000, **kinesis), offset=9)
    assert early < of(value("MODIFY", "", at=SECOND * 1000 + 1, **kinesis), offset=3)
    assert early < of(value("MODIFY", "", at=SECOND * 1000, **kinesis), offset=10)


@pytest.mark.parametrize(("number", "at"), [("12x", SECOND), ("1" * 41, SECOND), ("1", -5.0), ("1", 1e18)])
def test_what_gives_no_version_is_refused(number: str, at: float) -> None:
    with pytest.raises(ValueError, match=r"SequenceNumber|ApproximateCreationDateTime"):
        of(value("MODIFY", number, at=at))


def test_the_changes_of_an_item_are_put_together_the_newest_first() -> None:
    values = [value("MODIFY", "2"), value("INSERT", "3", key="b"), value("REMOVE", "9"), value("INSERT", "1")]
    items = newest_first(write_of(message(one), REPLICA) for one in values)
    assert [[one.version[-1] for one in some] for some in items] == [["9", "2", "1"], ["3"]]
    assert items[0][0].item() is None
    assert items[0][0].place.table == "copy-of-orders"


def test_a_change_without_its_new_image_is_refused() -> None:
    lean = json.loads(value("MODIFY"))
    del lean["dynamodb"]["NewImage"]
    with pytest.raises(RejectedError, match="does not say what the item becomes"):
        write_of(message(json.dumps(lean).encode()), REPLICA)


def test_the_id_of_a_version_fits_into_a_key() -> None:
    short = write_of(message(value("INSERT")), REPLICA).place
    assert version_id(short) == 'copy-of-orders/{"id":{"S":"a"}}'
    ids = [version_id(write_of(message(value("INSERT", key="x" * n)), REPLICA).place) for n in (2040, 2041)]
    assert ids[0] != ids[1]
    assert max(map(len, ids)) <= KEY_BYTES


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (refused("ProvisionedThroughputExceededException"), TransientError),
        (refused("ThrottlingException"), TransientError),
        (refused("RequestLimitExceeded"), TransientError),
        (refused("InternalServerError"), TransientError),
        (ClientError({"Error": {"Code": "?"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutItem"), TransientError),  # type: ignore[typeddict-item]
        (
            refused("TransactionCanceledException", CancellationReasons=[{"Code": "TransactionConflict"}]),
            TransientError,
        ),
        (refused("TransactionCanceledException", CancellationReasons=[{"Code": "ThrottlingError"}]), TransientError),
        (refused("TransactionCanceledException", CancellationReasons=[{"Code": "ValidationError"}]), RejectedError),
        (ReadTimeoutError(endpoint_url="http://x"), TransientError),
        (EndpointConnectionError(endpoint_url="http://x"), TransientError),
        (refused("ValidationException"), RejectedError),
        (refused("ResourceNotFoundException"), FatalError),
        (refused("AccessDeniedException"), FatalError),
    ],
)
def test_what_an_answer_of_dynamodb_means(error: Any, meant: type[Exception]) -> None:
    found = meaning(error, "the table t")
    assert type(found) is meant
    assert found.message.startswith("the table t")


@pytest.fixture
def calls() -> Any:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def writer(client: FakeDynamoDB, calls: ThreadPoolExecutor, settings: ReplicaSettings = REPLICA) -> ReplicaWriter:
    return ReplicaWriter(0, ReplicaTable(cast("Any", client), settings), settings, calls)


def test_an_item_that_moves_between_sinks_of_a_replica_stays_in_it(calls: ThreadPoolExecutor) -> None:
    both = ReplicaSettings(sinks=("s", "t"), table="copy-of-{table}")
    for to, end in ((b"t", 1), (b"elsewhere", 0)):
        client = FakeDynamoDB(KEYS)
        one = writer(client, calls, both)
        left = Record(value("REMOVE", "2"), 1)
        left.said = [("op", b"d"), ("moved_to", to)]
        assert not one.add([message(value("INSERT", "1"), 0), cast("Message", left)], 2)
        assert one.flush().end == 2
        assert len(client.tables["copy-of-orders"]) == end


def test_one_change_that_is_refused_leaves_the_item_at_the_one_before(calls: ThreadPoolExecutor) -> None:
    client = FakeDynamoDB(KEYS)
    one = writer(client, calls)
    large = value("MODIFY", "2", image={"n": {"S": "x" * 500_000}})
    assert not one.add(
        [message(value("INSERT", "1"), 0), message(large, 1), message(value("INSERT", "3", key="b"), 2)], 3
    )
    flushed = one.flush()
    assert flushed.end == 3
    assert flushed.counts == {"items": 2}
    assert [rejected.record.offset() for rejected in flushed.rejected] == [1]
    (a, b) = client.tables["copy-of-orders"].values()
    assert (a["n"], b["n"]) == ({"N": "1"}, {"N": "3"})


def test_what_is_not_a_change_is_rejected_and_the_rest_continues(calls: ThreadPoolExecutor) -> None:
    one = writer(FakeDynamoDB(KEYS), calls)
    odd = value("MODIFY", "2", image={"n": {"Q": 1}}, key="c")
    rejected = one.add([message(b"no json", 0), message(value("INSERT", "1"), 1), message(odd, 2)], 3)
    assert [each.record.offset() for each in rejected] == [0]
    assert one.is_due(0)
    flushed = one.flush()
    assert flushed.end == 3
    assert not one.is_due(0)
    assert one.size == 0


def test_a_flush_that_failed_continues_with_what_is_left() -> None:
    left = {1: True, 12: True}

    def trouble(when: str) -> None:
        if when == "before" and left.pop(client.calls + 1, False):
            raise refused("ThrottlingException")

    client = FakeDynamoDB(KEYS, trouble)
    with ThreadPoolExecutor(1) as calls:
        one = writer(client, calls)
        one.add([message(value("INSERT", f"{n}", key=f"k{n}"), n) for n in range(20)], 20)
        with pytest.raises(TransientError, match="ThrottlingException"):
            one.flush()
        flushed = one.flush()
        assert flushed == Flushed(11, {"items": 11})
        assert one.is_due(0)
        assert one.flush() == Flushed(20, {"items": 9})
    assert client.calls == 20


def test_a_deleted_item_is_gone_from_the_table_and_remembered_beside_it(calls: ThreadPoolExecutor) -> None:
    client = FakeDynamoDB(KEYS)
    one = writer(client, calls)
    for n, change in enumerate([value("INSERT", "1"), value("REMOVE", "3"), value("MODIFY", "2")]):
        one.add([message(change, n)], n + 1)
        one.flush()
    assert client.tables["copy-of-orders"] == {}
    (tombstone,) = client.tables["orders.versions"].values()
    assert tombstone["version"]["S"] == of(value("REMOVE", "3"))
    assert int(tombstone["expires"]["N"]) > SECOND
    one.add([message(value("INSERT", "4"), 3)], 4)
    assert one.flush().counts == {"items": 1}
    assert client.tables["orders.versions"] == {}, "a version is in one place"
