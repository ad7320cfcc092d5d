"""The workload on the stand-in, its streams read by boto3 alone, held against its own truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import boto3
import orjson
import pytest

from headwater.lab.proof import Actual, compare, item_key, json_item
from headwater.lab.stack import Endpoints
from headwater.lab.workload import KEYS, Workload
from models.change import OPS
from pipeline.errors import HeadwaterError
from pipeline.sources.shards import Lineage, ReadUpTo, Shard

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodbstreams import DynamoDBStreamsClient

CHANGES = 2_000


@pytest.fixture
def dynamodb(stack: Endpoints) -> Iterator[DynamoDBClient]:
    client: DynamoDBClient = boto3.client("dynamodb", **_where(stack))
    yield client
    for table in KEYS:
        client.delete_table(TableName=table)


@pytest.fixture
def streams(stack: Endpoints) -> DynamoDBStreamsClient:
    client: DynamoDBStreamsClient = boto3.client("dynamodbstreams", **_where(stack))
    return client


def test_the_streams_hold_exactly_what_the_workload_says_it_wrote(
    dynamodb: DynamoDBClient, streams: DynamoDBStreamsClient
) -> None:
    workload = Workload(dynamodb, seed=7, changes=CHANGES)
    workload.create_tables()
    progress: list[int] = []
    steps: list[int] = []

    truth = workload.run(progress.append, between=lambda: steps.append(progress[-1]))
    verdict = compare(truth, _read(dynamodb, streams))

    assert verdict.ok, verdict
    assert (verdict.written, verdict.seen) == (CHANGES, CHANGES)
    assert progress == sorted(progress)
    assert progress[-1] == CHANGES
    assert steps == [CHANGES // 20]


def test_tables_that_exist_already_are_an_error_that_says_what_to_do(dynamodb: DynamoDBClient) -> None:
    Workload(dynamodb, seed=7, changes=1).create_tables()

    with pytest.raises(HeadwaterError, match="'orders' exists already") as raised:
        Workload(dynamodb, seed=7, changes=1).create_tables()

    assert "delete-table --table-name orders" in raised.value.hint


def _where(stack: Endpoints) -> dict[str, Any]:
    return {
        "endpoint_url": stack.aws_endpoint_url,
        "region_name": "eu-west-1",
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
    }


def _read(dynamodb: DynamoDBClient, streams: DynamoDBStreamsClient) -> Iterator[Actual]:
    """Yield every record of both tables' streams, parents before children."""
    for table in KEYS:
        arn = dynamodb.describe_table(TableName=table)["Table"]["LatestStreamArn"]
        listed = streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
        shards = [Shard(s["ShardId"], (s["ParentShardId"],) if "ParentShardId" in s else ()) for s in listed]
        positions: dict[str, ReadUpTo] = {}
        while readable := Lineage(shards, positions).readable():
            shard_id = next(iter(readable))
            yield from _drain(streams, table, arn, shard_id)
            positions[shard_id] = ReadUpTo(finished=True)


def _drain(streams: DynamoDBStreamsClient, table: str, arn: str, shard_id: str) -> Iterator[Actual]:
    """Yield a shard's records to its end or, as nobody writes any more, to an empty answer."""
    iterator: str | None = streams.get_shard_iterator(
        StreamArn=arn, ShardId=shard_id, ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    while iterator:
        answer = streams.get_records(ShardIterator=iterator)
        for record in answer["Records"]:
            body = record["dynamodb"]
            op = OPS[record["eventName"]]
            yield (
                table,
                item_key(body["Keys"]),
                record["eventID"],
                op,
                _dump(body.get("NewImage")),
                _dump(body.get("OldImage")),
            )
        if not answer["Records"]:
            return
        iterator = answer.get("NextShardIterator")


def _dump(image: Mapping[str, Any] | None) -> bytes | None:
    return None if image is None else orjson.dumps(json_item(image))
