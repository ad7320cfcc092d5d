"""The usual way to do it: a plain loop, boto3's GetRecords, `json.dumps`, one `produce` a change; transactional as well.

One process, one thread, the shards by turns. Keys and values are those of Headwater; the positions are committed with the
changes, each 100 ms, in the form of Headwater's shards topic, so that the same eyes see its progress.

Arguments: servers, transactional ID, output topic, positions topic, URL of the stream.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import Any

import boto3
from confluent_kafka import Producer

INTERVAL = 0.1


def change(record: Any, arn: str) -> tuple[str, str]:
    """Return the key and the value of a record as boto3 gives it."""
    key = json.dumps(record["dynamodb"]["Keys"], sort_keys=True, separators=(",", ":"))
    return key, json.dumps({"eventSourceARN": arn, **record}, default=plain, separators=(",", ":"))


def plain(value: object) -> int:
    """Return a time as the API wrote it, before boto3 made an object of it."""
    if isinstance(value, datetime):
        return int(value.timestamp())
    raise TypeError(f"not JSON: {value!r}")


def main(servers: str, name: str, output: str, positions: str, url: str) -> None:
    """Run until killed."""
    streams = boto3.client("dynamodbstreams", endpoint_url=url)
    arn = boto3.client("dynamodb", endpoint_url=url).describe_table(TableName="orders")["Table"]["LatestStreamArn"]
    iterators = {
        shard["ShardId"]: streams.get_shard_iterator(
            StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        for shard in streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
    }
    producer = Producer(
        {"bootstrap.servers": servers, "transactional.id": name, "linger.ms": 2, "batch.size": 1_000_000}
        | {"compression.type": "zstd", "partitioner": "murmur2_random", "queue.buffering.max.messages": 1_000_000}
    )
    producer.init_transactions()
    producer.begin_transaction()
    began, last = time.monotonic(), {}
    while True:
        for shard, iterator in iterators.items():
            answer = streams.get_records(ShardIterator=iterator, Limit=1000)
            for record in answer["Records"]:
                key, value = change(record, arn)
                producer.produce(output, value, key)
                last[shard] = record["dynamodb"]["SequenceNumber"]
            iterators[shard] = answer["NextShardIterator"]
            if last and time.monotonic() - began >= INTERVAL:
                for done, after in last.items():
                    producer.produce(positions, json.dumps({"table": "orders", "after": after}), f"{arn}/{done}")
                producer.commit_transaction()
                producer.begin_transaction()
                began, last = time.monotonic(), {}


if __name__ == "__main__":
    main(*sys.argv[1:])
