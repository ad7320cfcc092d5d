"""The transaction alone, on Apache Kafka: what cannot be delivered is never taken for delivered."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from confluent_kafka import Producer
from faust.types import TP
from support.waiting import until

from headwater.lab.stack import Endpoints
from pipeline.limits import MESSAGE_MAX
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic
from pipeline.transport import Participant, Slice
from pipeline.transport.follower import Follower
from pipeline.transport.partition import partition_of
from pipeline.transport.transaction import Transaction

pytestmark = pytest.mark.kafka


class Notes(Participant):
    """Writes down how slices end."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def committed(self, work: Slice) -> None:
        self.ends.append("committed")

    def aborted(self, work: Slice) -> None:
        self.ends.append("aborted")


@pytest.fixture
def conf(stack: Endpoints) -> dict[str, Any]:
    return {"bootstrap.servers": stack.bootstrap_servers}


@contextmanager
def started(conf: dict[str, Any], directory: Path, *, exactly_once: bool) -> Iterator[tuple[Transaction, Notes]]:
    transaction, notes = Transaction(conf, directory, "group", exactly_once=exactly_once), Notes()
    transaction.participants.append(notes)
    transaction.start()
    yield transaction, notes
    transaction.close()


@pytest.mark.parametrize("exactly_once", [True, False])
@pytest.mark.parametrize("batch", [True, False])
def test_a_record_that_the_broker_refuses_aborts_the_slice(
    conf: dict[str, Any], tmp_path: Path, exactly_once: bool, batch: bool
) -> None:
    topic = f"t{uuid.uuid4().hex[:8]}"
    ensure(admin(conf), [Topic(topic, 1, "small", {"max.message.bytes": "2000"})], 1)
    with started(conf, tmp_path, exactly_once=exactly_once) as (transaction, notes):
        committed: list[Any] = []
        transaction.commit_offsets = committed.append
        random = uuid.uuid4().bytes * 4_000  # compression would make a small record of zeros
        value = bytes(byte ^ (index & 0xFF) ^ (index >> 8 & 0xFF) for index, byte in enumerate(random))
        if batch:
            transaction.produce_batch(topic, [{"key": b"k", "value": value}], 0)
        else:
            transaction.produce(topic, b"k", value, 0)
        assert not transaction.commit(Slice(transaction.producer, (), {TP(topic, 0): 1}), b"not asked for")
        assert notes.ends == ["aborted"]
        assert committed == []


def test_a_change_of_many_times_its_size_in_dynamodb_fits(conf: dict[str, Any], tmp_path: Path) -> None:
    topic = f"t{uuid.uuid4().hex[:8]}"
    ensure(admin(conf), [Topic(topic, 1, "large", {"max.message.bytes": str(MESSAGE_MAX)})], 1)
    with started(conf, tmp_path, exactly_once=True) as (transaction, notes):
        transaction.produce(topic, b"k", b'{"NewImage":"' + b"x" * 8_000_000 + b'"}', 0)
        assert transaction.commit(Slice(transaction.producer), b"not asked for")
        assert notes.ends == ["committed"]


def test_a_batch_without_a_partition_goes_where_java_clients_put_each_key(conf: dict[str, Any], tmp_path: Path) -> None:
    topic, count = f"t{uuid.uuid4().hex[:8]}", 5
    ensure(admin(conf), [Topic(topic, count, "any")], 1)
    keys = [b'{"id":{"S":"%d"}}' % number for number in range(200)]
    records = [{"key": key, "value": b"v"} for key in keys]
    with started({**conf, "queue.buffering.max.messages": 64}, tmp_path, exactly_once=True) as (transaction, _):
        transaction.produce_batch(topic, records)
        assert transaction.commit(Slice(transaction.producer), b"not asked for")
    assert records == [{"key": key, "value": b"v"} for key in keys], "they can be written again"
    found: list[tuple[bytes | None, int | None]] = []
    follower = Follower(conf, topic, lambda read: found.extend((one.key(), one.partition()) for one in read))
    follower.start()
    until(lambda: len(found) >= len(keys), "the records to arrive", seconds=20)
    follower.stop()
    assert sorted(found, key=str) == sorted(((key, partition_of(key, count)) for key in keys), key=str)


def test_a_follower_whose_consumer_is_recreated_misses_and_repeats_nothing(conf: dict[str, Any]) -> None:
    topic = f"t{uuid.uuid4().hex[:8]}"
    ensure(admin(conf), [Topic(topic, 2, "any")], 1)
    found: list[bytes] = []
    follower = Follower(
        conf, topic, lambda records: found.extend(record.value() or b"" for record in records), quiet=0.3
    )
    follower.start()
    producer = Producer(conf)
    for number in range(1, 4):
        producer.produce(topic, b"%d" % number)
        assert producer.flush(20) == 0
        until(lambda number=number: len(found) >= number, f"record {number}")  # type: ignore[misc]
        quiet = monotonic() + 1  # longer than its consumer lives without a record
        until(lambda quiet=quiet: monotonic() > quiet, "a while")  # type: ignore[misc]
    follower.stop()
    assert found == [b"1", b"2", b"3"]
