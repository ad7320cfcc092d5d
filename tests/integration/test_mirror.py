"""The mirror between two real clusters: everything once and in order, whatever is killed, frozen or away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Message, Producer
from fleet import Fleet, ready
from waiting import until

from pipeline.lab import kafka, processes
from pipeline.lab.demo import Recorder, lag
from pipeline.lab.kafka import Broker
from pipeline.lab.processes import Process
from pipeline.lab.stack import Endpoints
from pipeline.topics import Topic, admin, ensure

pytestmark = pytest.mark.kafka
PARTITIONS = 4
KEPT = {"max.message.bytes": "16777216", "retention.ms": "-1"}
Row = tuple[bytes | None, bytes | None, list[tuple[str, bytes]], int]
"""Key, value, headers, timestamp."""


@dataclass
class Cluster:
    """A second cluster, which can go away and come back."""

    broker: Broker
    process: Process

    @property
    def conf(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.broker.address}

    def stop(self) -> None:
        processes.stop([self.process], grace=30)

    def start(self) -> None:
        self.process = self.broker.start(detached=False)
        self.broker.wait_until_ready(self.process)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, kafka_stack: Endpoints) -> Iterator[Cluster]:
    broker = kafka.apache_kafka(tmp_path_factory.mktemp("other"), "it is the other cluster", print)
    cluster = Cluster(broker, broker.start(detached=False))
    try:
        broker.wait_until_ready(cluster.process)
        yield cluster
    finally:
        cluster.stop()


@dataclass
class Mirrored:
    """A deployment whose sink `orders` is mirrored."""

    fleet: Fleet
    there: dict[str, Any]
    written: dict[int, list[Row]] = field(default_factory=lambda: {p: [] for p in range(PARTITIONS)})

    @property
    def topic(self) -> str:
        return self.fleet.topics.sink("orders")

    @property
    def group(self) -> str:
        return f"{self.fleet.prefix}.mirror.eu"

    def write(self, count: int, size: int = 200) -> None:
        """Write records round the partitions, as a flow does."""
        producer = Producer({**self.fleet.conf, "linger.ms": 5})
        for number in range(count):
            partition = number % PARTITIONS
            mine = self.written[partition]
            row: Row = (
                b"k%d" % (number % 7) if number % 11 else None,
                b"%d:%d:" % (partition, len(mine)) + b"x" * size if number % 13 else None,
                [(name, b"%s %d" % (name.encode(), number)) for name in ("event_id", "table", "op")],
                1_764_000_000_000 + number,
            )
            mine.append(row)
            self.put(producer, partition, row)
        assert producer.flush(30) == 0

    def put(self, producer: Producer, partition: int, row: Row) -> None:
        key, value, headers, at = row
        producer.produce(self.topic, value, key, partition, timestamp=at, headers=cast("Any", headers))
        producer.poll(0)

    @property
    def source_ends(self) -> dict[str, dict[int, int]]:
        return {self.topic: {p: len(rows) for p, rows in self.written.items()}}

    def is_carried(self, seen: Recorder) -> bool:
        """Say whether as many are there as were written, and the group says so."""
        enough = len(seen) >= sum(map(len, self.written.values()))
        return enough and lag(self.fleet.conf, self.group, self.source_ends) == 0

    def hold(self, seen: Recorder, mark: bytes) -> None:
        """Hold what is there against what was written: each once, in order, untouched but for the mark."""
        for partition, rows in self.written.items():
            found = [row_of(record) for record in seen.records.get(partition, [])]
            wanted = [(key, value, [*headers, ("mirrored_from", mark)], at) for key, value, headers, at in rows]
            assert len(found) == len(wanted)
            assert found == wanted


def row_of(record: Message) -> Row:
    headers = cast("list[tuple[str, bytes]]", record.headers() or [])
    return record.key(), record.value(), headers, record.timestamp()[1]


@pytest.fixture
def mirrored(kafka_stack: Endpoints, other: Cluster, tmp_path: Path) -> Mirrored:
    return make(kafka_stack, other.broker.address, tmp_path)


def make(stack: Endpoints, servers: str, directory: Path, **more: Any) -> Mirrored:
    """Return a deployment with the mirror `eu` to other brokers; its topics are there."""
    settings: dict[str, Any] = {"name": "eu", "bootstrap_servers": servers, "cluster": "here", "replication_factor": 1}
    environment = {
        "HEADWATER_AGENTS": '["mirror.eu"]',
        "HEADWATER_FLOWS": '[{"name": "f", "to": "orders"}]',
        "HEADWATER_MIRRORS": json.dumps([settings | more]),
    }
    fleet = Fleet(stack, directory, environment, partitions=PARTITIONS)
    result = Mirrored(fleet, {"bootstrap.servers": servers})
    ensure(admin(fleet.conf), [Topic(result.topic, PARTITIONS, "a sink", KEPT)], 1)
    return result


def test_everything_of_a_record_is_kept_and_the_group_follows(mirrored: Mirrored) -> None:
    mirrored.write(2_000)
    with mirrored.fleet.running(), Recorder(mirrored.there, mirrored.topic) as seen:
        until(lambda: mirrored.is_carried(seen), "all records there")
        mirrored.write(500)
        assert lag(mirrored.fleet.conf, mirrored.group, mirrored.source_ends) >= 0
        until(lambda: mirrored.is_carried(seen), "what came later")
    mirrored.hold(seen, b"here")


def test_killed_again_and_again_every_record_is_there_once(mirrored: Mirrored) -> None:
    workers = mirrored.fleet.workers(2)
    for worker in workers.all:
        worker.most_starts = 50
    with Recorder_when_there(mirrored) as seen:
        workers.start()
        try:
            until(lambda: all(map(ready, workers.all)), "workers that are ready")
            for round_ in range(6):
                before = len(seen)
                mirrored.write(4_000)
                until(lambda before=before: len(seen) > before + 200, "some progress")  # type: ignore[misc]
                workers.kill(round_ % 2)
                workers.watch()

            def through() -> bool:
                workers.watch()
                return mirrored.is_carried(seen)

            until(through, "all records there")
        finally:
            workers.stop()
        until(lambda: seen.is_at_end(mirrored.there), "the end")
    mirrored.hold(seen, b"here")


@contextmanager
def Recorder_when_there(mirrored: Mirrored) -> Iterator[Recorder]:
    ensure(admin(mirrored.there), [Topic(mirrored.topic, PARTITIONS, "copy", KEPT)], 1)
    with Recorder(mirrored.there, mirrored.topic) as seen:
        yield seen
