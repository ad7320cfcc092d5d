"""Input of the benchmark `flows`: changes of orders of about 1 KB with both images, and the customers that they point to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from confluent_kafka import Producer

from headwater.lab.bench.load import CHUNK, NOISE, PARTITIONS
from pipeline.errors import HeadwaterError

CUSTOMERS = 10_000
ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-11-23T00:00:00.000"
BASE = 1_764_000_000


def is_wanted(number: int) -> bool:
    """Say whether the filter of the benchmark holds: every second change is a MODIFY, of them each fifth is paid."""
    return number % 10 == 1


def event_id(number: int) -> str:
    """Return the event ID of a change."""
    return f"{number:032x}"


def image(number: int, status: str, total: str) -> str:
    """Return an item of 12 attributes."""
    at = number * 37 % (len(NOISE) - 64)
    noise = NOISE[at : at + 48].decode()
    return (
        f'{{"order_id":{{"S":"o-{number:010d}"}},"customer_id":{{"S":"c-{number * 7919 % CUSTOMERS:05d}"}},'
        f'"status":{{"S":"{status}"}},"total":{{"N":"{total}"}},"currency":{{"S":"EUR"}},"lines":{{"N":"{number % 9 + 1}"}},'
        f'"gift":{{"BOOL":false}},"coupon":{{"NULL":true}},"note":{{"S":"{noise}"}},"country":{{"S":"NL"}},'
        f'"weight":{{"N":"0.{number % 900 + 100}"}},"updated":{{"S":"2026-11-24T10:00:00Z"}}}}'
    )


def record(number: int) -> tuple[bytes, bytes]:
    """Return key and value of a change."""
    op = "MODIFY" if number % 2 else "INSERT"
    others = ("open", "packed", "shipped", "lost")
    status = "paid" if is_wanted(number) or op == "INSERT" else others[number // 2 % 4]
    key = f'{{"order_id":{{"S":"o-{number:010d}"}}}}'
    total = f"{number % 1_000_000 + 10}.{number % 90 + 10}"
    value = (
        f'{{"eventID":"{event_id(number)}","eventName":"{op}","eventVersion":"1.1","eventSource":"aws:dynamodb",'
        f'"awsRegion":"eu-west-1","dynamodb":{{"ApproximateCreationDateTime":{BASE + number // 1000},"Keys":{key},'
        f'"NewImage":{image(number, status, total)},"OldImage":{image(number, "new", "1")},'
        f'"SequenceNumber":"{number:021d}","SizeBytes":640,"StreamViewType":"NEW_AND_OLD_IMAGES"}},'
        f'"eventSourceARN":"{ARN}"}}'
    )
    return key.encode(), value.encode()


def customer(number: int) -> tuple[bytes, bytes]:
    """Return reference key and item of a customer, as they are on a reference topic."""
    name = f"c-{number:05d}"
    item = f'{{"customer_id":{{"S":"{name}"}},"name":{{"S":"Customer {number}"}},"tier":{{"S":"gold"}},"since":{{"N":"2019"}}}}'
    return f'{{"S":"{name}"}}'.encode(), item.encode()


def preload(servers: str, topic: str, records: Iterator[tuple[bytes, bytes]], partitions: int = PARTITIONS) -> None:
    """Write records round the partitions, not compressed: the Kafka client of textbook Faust reads no lz4."""
    producer = Producer(
        {"bootstrap.servers": servers, "linger.ms": 20, "batch.size": 1_000_000}
        | {"queue.buffering.max.messages": 10_000_000, "queue.buffering.max.kbytes": 2_000_000}
    )
    while chunk := list(islice(records, CHUNK)):
        for partition in range(partitions):
            mine = [{"key": key, "value": value} for key, value in chunk[partition::partitions]]
            if producer.produce_batch(topic, mine, partition) != len(mine):
                raise HeadwaterError(f"{topic}: the queue of the producer is full")
        while len(producer) > 100_000:
            producer.poll(0.05)
    if left := producer.flush(120):
        raise HeadwaterError(f"{topic}: {left} records of the input could not be written")


def orders(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield changes."""
    return map(record, range(count))


def customers() -> Iterator[tuple[bytes, bytes]]:
    """Yield the items of the reference table, in an order that is not that of the changes."""
    numbers = list(range(CUSTOMERS))
    random.Random(7).shuffle(numbers)  # noqa: S311 - not for secrets
    return map(customer, numbers)
