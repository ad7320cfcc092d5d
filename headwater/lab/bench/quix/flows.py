# ruff: noqa: INP001 - a program that is run in another environment, no package
"""The flows of the benchmark in Quix Streams. Arguments: servers, group, input, output, reference topic, state directory, task.

As a user would write them: values are decoded to Python, images by boto3's deserializer. The reference table is read into
memory at the start, which is less work than a table that is kept up to date.
"""

from __future__ import annotations

import io
import json
import sys
from decimal import Decimal
from typing import Any

import fastavro  # type: ignore[import-untyped,import-not-found,unused-ignore]
import orjson
from boto3.dynamodb.types import TypeDeserializer
from confluent_kafka import Consumer, TopicPartition
from quixstreams import Application  # type: ignore[import-not-found]  # in an environment of its own

OPS = {"INSERT": "c", "MODIFY": "u", "REMOVE": "d"}


deserialize = TypeDeserializer().deserialize


def item(image: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return an item as Python values, by boto3's own deserializer: numbers are exact decimals."""
    return None if image is None else {name: deserialize(value) for name, value in image.items()}


def dumps(value: Any) -> bytes:
    """Return values as JSON, decimals with all their digits."""
    return orjson.dumps(value, default=exact)


def exact(value: Any) -> Any:
    """Return what orjson writes for a value that it does not know."""
    return orjson.Fragment(str(value)) if isinstance(value, Decimal) else list(value)


def headers(change: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Return the headers of a message on a sink topic."""
    body = change["dynamodb"]
    return [
        ("event_id", change["eventID"].encode()),
        ("table", change["eventSourceARN"].split("/")[1].encode()),
        ("op", OPS[change["eventName"]].encode()),
        ("source", b"dynamodb-stream"),
        ("ts_us", str(int(body["ApproximateCreationDateTime"]) * 1_000_000).encode()),
        ("sequence", body["SequenceNumber"].encode()),
    ]


def reference(servers: str, topic: str) -> dict[bytes, Any]:
    """Read the reference table."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reference", "enable.partition.eof": True})
    found, left = {}, 4
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(left)])
    while left:
        for message in consumer.consume(5_000, 1.0):
            if message.error() is not None:
                left -= 1
            else:
                found[bytes(message.key() or b"")] = orjson.loads(message.value() or b"")
    consumer.close()
    return found


def is_paid(change: dict[str, Any]) -> bool:
    """Say whether the filter holds."""
    return bool(change["eventName"] == "MODIFY" and change["dynamodb"]["NewImage"]["status"]["S"] == "paid")


def is_large(change: dict[str, Any]) -> bool:
    """Say what the expression in CEL says."""
    image = change["dynamodb"].get("NewImage")
    return (
        change["eventName"] == "MODIFY"
        and image is not None
        and image["status"]["S"] == "paid"
        and float(image["total"]["N"]) > 1.0
    )


DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 10}
TYPES: dict[str, Any] = {
    **dict.fromkeys(("order_id", "customer_id", "status", "currency", "note", "country", "updated"), "string"),
    **dict.fromkeys(("total", "lines", "weight"), DECIMAL),
    "gift": "boolean",
    "coupon": "string",
}
FIELDS = [{"name": name, "type": ["null", kind], "default": None} for name, kind in TYPES.items()]
SCHEMA = fastavro.parse_schema({"type": "record", "name": "orders", "fields": FIELDS})


def avro(image: dict[str, Any]) -> bytes:
    """Return an item in Avro, with exact decimals."""
    values = item(image)
    out = io.BytesIO(b"\0\0\0\0\1")
    out.seek(5)
    fastavro.schemaless_writer(out, SCHEMA, values)
    return out.getvalue()


def debezium(change: dict[str, Any]) -> bytes:
    """Return a change in Debezium's envelope."""
    body, ts = change["dynamodb"], int(change["dynamodb"]["ApproximateCreationDateTime"])
    source = {"connector": "dynamodb", "table": "orders", "sequence": body["SequenceNumber"], "ts_ms": ts * 1000}
    return dumps(
        {
            "before": item(body.get("OldImage")),
            "after": item(body.get("NewImage")),
            "source": source,
            "op": OPS[change["eventName"]],
            "ts_ms": ts * 1000,
            "transaction": None,
        }
    )


def make(task: str, known: dict[bytes, Any]) -> Any:
    """Return what happens to a change: the value to write, or None."""

    def joined(change: dict[str, Any], value: bytes) -> bytes:
        image = change["dynamodb"]["NewImage"]
        customer = known.get(json.dumps(image["customer_id"], separators=(",", ":")).encode())
        return dumps({**(item(image) or {}), "customer": item(customer)})

    return {
        "pass_through": lambda change, value: value,
        "pattern_filter": lambda change, value: value if is_paid(change) else None,
        "cel_filter": lambda change, value: value if is_large(change) else None,
        "join_plain": joined,
        "sql": lambda change, value: dumps(
            {
                **(item(change["dynamodb"]["NewImage"]) or {}),
                "doubled": float(change["dynamodb"]["NewImage"]["total"]["N"]) * 2,
            }
        ),
        "avro": lambda change, value: avro(change["dynamodb"]["NewImage"]),
        "debezium": lambda change, value: debezium(change),
    }[task]


def main(servers: str, group: str, source: str, output: str, table: str, directory: str, task: str) -> None:
    """Run until it is stopped."""
    work = make(task, reference(servers, table) if task == "join_plain" else {})
    app = Application(
        broker_address=servers,
        consumer_group=group,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=0.1,
        state_dir=directory,
        loglevel="WARNING",
        producer_extra_config={"compression.type": "lz4"},
    )
    changes = app.topic(source, key_deserializer="bytes", value_deserializer="bytes")
    sink = app.topic(output, key_serializer="bytes", value_serializer="bytes")

    def decode(value: bytes) -> Any:
        change = orjson.loads(value)
        return headers(change), work(change, value)

    frame = app.dataframe(changes).apply(decode)
    frame = frame.filter(lambda made: made[1] is not None)
    frame = frame.set_headers(lambda made, key, timestamp, _: made[0])
    frame.apply(lambda made: made[1]).to_topic(sink)
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
