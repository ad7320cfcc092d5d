"""Input and output of a benchmark: changes with duplicates, preloaded; and what came out, counted."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, cast

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pipeline.errors import HeadwaterError

PARTITIONS = 4
VALUE_BYTES = 496
DUPLICATES = 0.2
CHUNK = 10_000
NOISE = random.Random(7).randbytes(32_768).hex().encode()  # noqa: S311 - not for secrets
"""Half of a value is taken from here, so that compression finds about as much as in real records."""


@dataclass(frozen=True)
class Input:
    """Event IDs in the order in which they are written: number i goes to partition i % 4, a repeated one to its first's."""

    ids: Sequence[str]

    @property
    def unique(self) -> set[bytes]:
        """The IDs that must come out."""
        return {event_id.encode() for event_id in self.ids}


class LoadOutcome(NamedTuple):
    """What the output lacks and has twice."""

    missing: int
    doubled: int


def changes(count: int, *, seed: int, duplicates: float = DUPLICATES) -> Input:
    """Return `count` event IDs, as AWS writes them; this share of them were there before, in the same partition."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    ids: list[str] = []
    known: list[list[str]] = [[] for _ in range(PARTITIONS)]
    for number in range(count):
        mine = known[number % PARTITIONS]
        if mine and chance.random() < duplicates:
            ids.append(chance.choice(mine))
        else:
            mine.append(chance.randbytes(16).hex())
            ids.append(mine[-1])
    return Input(ids)


def value(event_id: str, number: int) -> bytes:
    """Return a record of 496 bytes."""
    at = number * 37 % (len(NOISE) - 256)
    head = b'{"eventID":"%s","number":%d,"noise":"%s","rest":"' % (event_id.encode(), number, NOISE[at : at + 200])
    return head.ljust(VALUE_BYTES - 2, b"x") + b'"}'


def small_value(event_id: str, number: int) -> bytes:
    """Return a record with an event ID and nothing else, to fill a table with."""
    return b'{"eventID":"%s"}' % event_id.encode()


def event_id_of(record: bytes) -> bytes:
    """Return the event ID of a record of ours."""
    return record[12:44]


def preload(servers: str, topic: str, given: Input, *, small: bool = False) -> None:
    """Write the input, not compressed (the Kafka client of textbook Faust reads no lz4); a record's key is its event ID."""
    producer = Producer(
        {"bootstrap.servers": servers, "linger.ms": 20, "batch.size": 1_000_000}
        | {"queue.buffering.max.messages": 10_000_000, "queue.buffering.max.kbytes": 2_000_000}
    )
    make = small_value if small else value
    numbered = iter(enumerate(given.ids))
    while chunk := list(islice(numbered, CHUNK)):
        for partition in range(PARTITIONS):
            mine = [i for i in chunk if i[0] % PARTITIONS == partition]
            records = [{"key": event_id, "value": make(event_id, number)} for number, event_id in mine]
            if producer.produce_batch(topic, records, partition) != len(records):
                raise HeadwaterError(f"{topic}: the queue of the producer is full")
        while len(producer) > 100_000:
            producer.poll(0.05)
    if left := producer.flush(120):
        raise HeadwaterError(f"{topic}: {left} records of the input could not be written")


def make_topics(servers: str, names: Iterable[str], partitions: int = PARTITIONS) -> None:
    """Make topics."""
    admin = _admin(servers)
    _settle(admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1) for name in names]))


def begin(servers: str, group: str, topic: str) -> None:
    """Commit offset 0 of all partitions for a group, as if it had been there before."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False})
    consumer.commit(
        offsets=[TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)], asynchronous=False
    )
    consumer.close()


def drop_topics(servers: str, prefix: str) -> None:
    """Delete what a run has left: the broker's memory and disk are wanted by the next."""
    admin = _admin(servers)
    names = [name for name in admin.list_topics(timeout=10).topics if prefix in name]
    if names:
        _settle(admin.delete_topics(names))


def _admin(servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": servers, "log_level": 0})


def check(servers: str, topic: str, given: Input) -> LoadOutcome:
    """Read the output, committed records only, and compare."""
    return compare([event_id_of(record) for record in read(servers, topic)], given)


def compare(found: Sequence[bytes], given: Input) -> LoadOutcome:
    """Count the event IDs that the output lacks, and those that it has too often."""
    once = set(found)
    return LoadOutcome(len(given.unique - once), len(found) - len(once))


def read(servers: str, topic: str) -> Iterator[bytes]:
    """Yield the committed values of a topic up to its present end."""
    return (cast("bytes", message.value()) for message in messages(servers, topic))


def read_headers(servers: str, topic: str) -> Iterator[list[tuple[str, bytes]]]:
    """Yield the headers of the committed messages of a topic up to its present end."""
    return (cast("list[tuple[str, bytes]]", message.headers() or []) for message in messages(servers, topic))


def messages(servers: str, topic: str) -> Iterator[Message]:
    """Yield the committed messages of a topic up to its present end."""
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": f"{topic}.check", "enable.auto.commit": False}
        | {"auto.offset.reset": "earliest", "isolation.level": "read_committed", "enable.partition.eof": True}
    )
    ends = {partition: _end(servers, topic, partition) for partition in range(PARTITIONS)}
    consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
    while ends:
        for message in consumer.consume(5_000, 1.0):
            if message.error() is None:
                yield message
            elif cast("int", message.offset()) >= ends.get(partition := cast("int", message.partition()), 0):
                ends.pop(partition, None)
    consumer.close()


def _end(servers: str, topic: str, partition: int) -> int:
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": f"{topic}.check", "isolation.level": "read_uncommitted"}
    )
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])
    finally:
        consumer.close()


def _settle(futures: dict[str, Future[Any]]) -> None:
    for future in futures.values():
        future.result(30)
