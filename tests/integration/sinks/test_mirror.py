"""The mirror between two real clusters: everything once and in order, whatever is killed, frozen or away."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from urllib.request import urlopen

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Message, Producer, TopicPartition
from faust.types import TP
from support.fleet import SESSION, Fleet, log_of, ready
from support.paths import BEFORE
from support.waiting import until

from headwater.lab import kafka, processes
from headwater.lab.kafka import Broker
from headwater.lab.processes import Process
from headwater.lab.recorder import Recorder, lag
from headwater.lab.stack import Endpoints
from headwater.lab.workers import Workers
from pipeline.errors import FatalError
from pipeline.settings.sinks import MirrorSettings
from pipeline.sinks.base import Writer
from pipeline.sinks.mirror.sink import Mirror, copied
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic
from pipeline.transport.logs import UNKNOWN, Log, logs_of

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
        producer = Producer({**self.fleet.conf, "linger.ms": 5, "enable.idempotence": True})
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


def make(stack: Endpoints, servers: str, directory: Path, prefix: str = "", **more: Any) -> Mirrored:
    """Return a deployment with the mirror `eu` to other brokers; its topics are there."""
    settings: dict[str, Any] = {"name": "eu", "bootstrap_servers": servers, "cluster": "here", "replication_factor": 1}
    environment = {
        "HEADWATER_AGENTS": '["mirror.eu"]',
        "HEADWATER_FLOWS": '[{"name": "f", "to": "orders"}]',
        "HEADWATER_MIRRORS": json.dumps([settings | more]),
    }
    prefix = prefix or f"t{uuid.uuid4().hex[:8]}"
    fleet = Fleet(stack, directory, environment, partitions=PARTITIONS, prefix=prefix)
    result = Mirrored(fleet, {"bootstrap.servers": servers})
    ensure(admin(fleet.conf), [Topic(result.topic, PARTITIONS, "a sink", KEPT)], 1)
    return result


@contextmanager
def recorded(mirrored: Mirrored) -> Iterator[Recorder]:
    ensure(admin(mirrored.there), [Topic(mirrored.topic, PARTITIONS, "copy", KEPT)], 1)
    with Recorder(mirrored.there, mirrored.topic) as seen:
        yield seen


def test_everything_of_a_record_is_kept_and_the_group_follows(mirrored: Mirrored) -> None:
    mirrored.write(2_000)
    with mirrored.fleet.running(), Recorder(mirrored.there, mirrored.topic) as seen:
        until(lambda: mirrored.is_carried(seen), "all records there")
        mirrored.write(500)
        until(lambda: mirrored.is_carried(seen), "what came later")
    mirrored.hold(seen, b"here")
    mirrored.write(100)
    assert lag(mirrored.fleet.conf, mirrored.group, mirrored.source_ends) == 100


def test_killed_again_and_again_every_record_is_there_once(mirrored: Mirrored) -> None:
    workers = mirrored.fleet.workers(2)
    for worker in workers.all:
        worker.most_starts = 50
    with recorded(mirrored) as seen:
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


def test_a_former_owner_that_was_frozen_writes_nothing_more(mirrored: Mirrored) -> None:
    with recorded(mirrored) as seen, mirrored.fleet.running(2) as workers:
        first, second = workers.all
        mirrored.write(40_000, 1_000)
        until(lambda: len(seen) > 500, "some progress")
        first.signal(signal.SIGSTOP)  # in the middle of what it does
        before = log_of(second).count("4 in all")
        until(lambda: log_of(second).count("4 in all") > before, "the other one has all partitions", SESSION * 5)
        until(lambda: mirrored.is_carried(seen), "all records there, without it")
        before = log_of(first).count("2 in all")
        first.signal(signal.SIGCONT)
        mirrored.write(4_000)
        until(lambda: log_of(first).count("2 in all") > before, "it has come back")
        until(lambda: mirrored.is_carried(seen), "what came later")
        until(lambda: seen.is_at_end(mirrored.there), "the end")
        assert all(worker.alive() for worker in workers.all)
    mirrored.hold(seen, b"here")


def test_the_other_cluster_may_be_away_for_a_while(mirrored: Mirrored, other: Cluster) -> None:
    with (
        recorded(mirrored) as seen,
        Recorder(mirrored.fleet.conf, mirrored.fleet.topics.sink_states) as states,
        mirrored.fleet.running() as workers,
    ):
        mirrored.write(1_000)
        until(lambda: mirrored.is_carried(seen), "all records there")
        other.stop()
        mirrored.write(1_000)
        until(lambda: any(record.value() for record in states), "the reason")
        said = json.loads(next(value for record in states if (value := record.value())))
        assert said["sink"] == "mirror"
        assert said["topic"] == mirrored.topic
        assert other.broker.address in said["reason"]
        other.start()
        until(lambda: mirrored.is_carried(seen), "what came meanwhile", 150)
        until(lambda: not any(newest(states).values()), "nothing is said any more")
        assert workers.all[0].starts == 1
    mirrored.hold(seen, b"here")


def newest(states: Recorder) -> dict[bytes | None, bytes | None]:
    return {record.key(): record.value() for record in states}


def test_what_comes_back_is_not_sent_round_again(kafka_stack: Endpoints, other: Cluster, tmp_path: Path) -> None:
    there = replace(kafka_stack, bootstrap_servers=other.broker.address)
    out = make(kafka_stack, there.bootstrap_servers, tmp_path / "out", cluster=None)
    back = make(there, kafka_stack.bootstrap_servers, tmp_path / "back", cluster=None, prefix=out.fleet.prefix)
    for one in (out, back):
        one.write(400)
    with (
        Recorder(out.fleet.conf, out.topic) as here,
        Recorder(out.there, out.topic) as seen,
        out.fleet.running() as outward,
        back.fleet.running() as inward,
    ):
        until(lambda: (len(here), len(seen)) == (800, 800), "the records of both in both")
        until(lambda: returned(outward) == returned(inward) == 400, "what came back was not sent on")
        assert (len(here), len(seen)) == (800, 800)
    ids = {one.list_topics(timeout=10).cluster_id for one in map(admin, (out.fleet.conf, out.there))}
    for recorder in (here, seen):
        marks = [dict(row_of(record)[2]).get("mirrored_from") for record in recorder]
        assert marks.count(None) == 400
        assert {mark.decode() for mark in marks if mark} < ids


def returned(workers: Workers) -> int:
    """Return how many records a worker has left out because they come from there."""
    assert workers.all[0].process is not None
    with urlopen(f"{workers.all[0].process.address}/metrics") as answer:  # noqa: S310 - ours
        found = re.search(
            rb'^headwater_delivered_total{destination="mirror",kind="returned"} (\d+)', answer.read(), re.MULTILINE
        )
    return int(found[1]) if found else 0


def test_a_record_that_is_refused_becomes_a_dead_letter_and_the_rest_continues(mirrored: Mirrored) -> None:
    ensure(
        admin(mirrored.there), [Topic(mirrored.topic, PARTITIONS, "copy", {**KEPT, "max.message.bytes": "20000"})], 1
    )
    mirrored.write(400)
    producer = Producer(mirrored.fleet.conf)
    large: list[Row] = [(b"large", os.urandom(50_000), [("op", b"c")], 1_764_000_000_000) for _ in range(3)]
    for row in large:
        mirrored.put(producer, 1, row)
    assert producer.flush(10) == 0
    ends = {**mirrored.source_ends[mirrored.topic], 1: 103}
    mirrored.fleet.directory.mkdir(exist_ok=True)
    with (
        Recorder(mirrored.there, mirrored.topic) as seen,
        Recorder(mirrored.fleet.conf, mirrored.fleet.topics.dead_letter) as letters,
        mirrored.fleet.running(),
    ):
        until(lambda: len(letters) == 3, "the dead letters")
        until(lambda: lag(mirrored.fleet.conf, mirrored.group, {mirrored.topic: ends}) == 0, "the rest")
        assert [record.value() for record in letters] == [row[1] for row in large]
        until(lambda: seen.is_at_end(mirrored.there), "the end")
    mirrored.hold(seen, b"here")


def test_a_position_that_is_gone_stops_the_mirror(mirrored: Mirrored) -> None:
    mirrored.write(100)
    with mirrored.fleet.running(), Recorder(mirrored.there, mirrored.topic) as seen:
        until(lambda: mirrored.is_carried(seen), "all records there")
    client = admin(mirrored.there)
    (group,) = [one.group_id for one in client.list_consumer_groups().result().valid if mirrored.group in one.group_id]
    client.delete_consumer_groups([group])[group].result(10)
    mirrored.write(100)
    workers = mirrored.fleet.workers(1)
    workers.start()
    try:
        until(lambda: not workers.all[0].alive(), "its end")
    finally:
        workers.stop()
    assert f"{mirrored.topic}:" in log_of(workers.all[0])
    assert "the position is gone" in log_of(workers.all[0])
    assert f"--group {group} --topic" in log_of(workers.all[0])


def test_a_topic_with_other_partitions_is_refused(mirrored: Mirrored) -> None:
    ensure(admin(mirrored.there), [Topic(mirrored.topic, 3, "copy")], 1)
    settings = MirrorSettings(name="eu", bootstrap_servers=mirrored.there["bootstrap.servers"])
    wanted = copied(settings, {"orders": mirrored.topic}, PARTITIONS)
    with pytest.raises(FatalError, match="has 3 partitions, and here it has 4"):
        Mirror(settings, mirrored.fleet.conf, mirrored.group, wanted).prepare()


def test_a_cluster_is_not_mirrored_into_itself(mirrored: Mirrored) -> None:
    settings = MirrorSettings(name="eu", bootstrap_servers=mirrored.fleet.conf["bootstrap.servers"])
    wanted = copied(settings, {"orders": mirrored.topic}, PARTITIONS)
    with pytest.raises(FatalError, match="is this cluster itself"):
        Mirror(settings, mirrored.fleet.conf, mirrored.group, wanted).prepare()


def test_a_crash_before_the_dead_letter_is_written_does_not_lose_it(mirrored: Mirrored) -> None:
    small = {**KEPT, "max.message.bytes": "20000"}
    ensure(admin(mirrored.there), [Topic(mirrored.topic, PARTITIONS, "copy", small)], 1)
    producer = Producer(mirrored.fleet.conf)
    for value in (b"first", os.urandom(50_000), b"last"):
        mirrored.put(producer, 1, (b"k", value, [("op", b"c")], 1_764_000_000_000))
    assert producer.flush(10) == 0
    with Recorder(mirrored.fleet.conf, mirrored.topic) as here, recorded(mirrored) as seen:
        until(lambda: len(here) == 3, "the records here")
        records = here.records[1]
        lost = opened(mirrored, TP(mirrored.topic, 1))
        assert list(lost.add(records, 3)) == []
        flushed = lost.flush()  # what it says dies with its process
        assert (flushed.end, [one.record.offset() for one in flushed.rejected]) == (3, [1])
        assert flushed.counts == {"records": 2, "returned": 0}

        later = opened(mirrored, TP(mirrored.topic, 1))
        assert later.position == 1
        later.add(records[1:2], 2)
        again = later.flush()
        assert (again.end, [one.record.offset() for one in again.rejected], again.counts) == (2, [1], {})
        later.add(records[2:], 3)
        assert later.flush().end == 3
        assert not later.is_due(time.monotonic())
        until(lambda: seen.is_at_end(mirrored.there), "the end")
        assert [record.value() for record in seen] == [b"first", b"last"]


def recreate(conf: dict[str, Any], topic: Topic) -> None:
    """Delete a topic and make it again."""
    client = admin(conf)
    client.delete_topics([topic.name], operation_timeout=20)[topic.name].result(20)
    until(lambda: topic.name not in client.list_topics(timeout=10).topics, "the topic gone")
    ensure(client, [topic], 1)


def test_a_recreated_topic_is_copied_from_its_beginning_behind_what_is_there(mirrored: Mirrored) -> None:
    mirrored.write(100)
    with mirrored.fleet.running(), Recorder(mirrored.there, mirrored.topic) as seen:
        until(lambda: mirrored.is_carried(seen), "all records there")
    recreate(mirrored.fleet.conf, Topic(mirrored.topic, PARTITIONS, "sink", KEPT))
    mirrored.write(60)
    with mirrored.fleet.running(), Recorder(mirrored.there, mirrored.topic) as seen:
        until(lambda: len(seen) >= 160, "the records of the new topic there")
        until(lambda: seen.is_at_end(mirrored.there), "the end")
        assert {p: [record.value() for record in seen.records[p]] for p in range(PARTITIONS)} == {
            p: [row[1] for row in rows] for p, rows in mirrored.written.items()
        }


def position_there(mirrored: Mirrored, tp: TP) -> TopicPartition:
    """What the other cluster keeps of a partition."""
    client = admin(mirrored.there)
    (group,) = [one.group_id for one in client.list_consumer_groups().result().valid if mirrored.group in one.group_id]
    asked = ConsumerGroupTopicPartitions(group, [TopicPartition(*tp)])
    (found,) = client.list_consumer_group_offsets([asked])[group].result(10).topic_partitions or []
    return cast("TopicPartition", found)


def set_position(conf: dict[str, Any], group: str, at: TopicPartition) -> None:
    """Set an offset of a group, and what is kept beside it."""
    consumer = Consumer({**conf, "group.id": group, "enable.auto.commit": False})
    consumer.commit(offsets=[at], asynchronous=False)
    consumer.close()


def test_a_topic_that_was_recreated_there_is_refused_with_what_differs(mirrored: Mirrored) -> None:
    tp = TP(mirrored.topic, 2)
    mirrored.write(12)
    with Recorder(mirrored.fleet.conf, mirrored.topic) as here:
        until(lambda: len(here) == 12, "the records here")
        writer = opened(mirrored, tp)
        writer.add(here.records[2], 3)
        assert writer.flush().end == 3
    at = position_there(mirrored, tp)
    client = admin(mirrored.there)
    (group,) = [one.group_id for one in client.list_consumer_groups().result().valid if mirrored.group in one.group_id]
    recreate(mirrored.there, Topic(mirrored.topic, PARTITIONS, "copy", KEPT))
    set_position(mirrored.there, group, TopicPartition(*tp, at.offset, at.metadata))
    differs = "the position 3 is of another topic of this name there: the topic was ID"
    with pytest.raises(FatalError, match=differs) as caught:
        opened(mirrored, tp)
    assert f"--group {group} --topic {mirrored.topic}:2 --reset-offsets --to-offset 0" in caught.value.hint
    set_position(mirrored.there, group, TopicPartition(*tp, 0))
    assert opened(mirrored, tp).position == 0


def test_a_position_of_the_version_before_names_its_log_as_soon_as_it_is_known(mirrored: Mirrored) -> None:
    tp = TP(mirrored.topic, 1)
    mirrored.write(12)
    with Recorder(mirrored.fleet.conf, mirrored.topic) as here:
        until(lambda: len(here) == 12, "the records here")
        log = logs_of(admin(mirrored.fleet.conf), [mirrored.topic])[mirrored.topic]
        writer = opened(mirrored, tp)
        writer.add(here.records[1], 3)
        writer.flush()
    client = admin(mirrored.there)
    (group,) = [one.group_id for one in client.list_consumer_groups().result().valid if mirrored.group in one.group_id]
    before = json.loads((BEFORE / "mirror.json").read_text())
    set_position(mirrored.there, group, TopicPartition(*tp, 3, before["metadata"]))
    set_position(mirrored.fleet.conf, mirrored.group, TopicPartition(*tp, 3))

    writer = opened(mirrored, tp, log)
    assert writer.position == 3
    assert writer.is_due(time.monotonic())
    assert writer.flush().end == 3
    assert not writer.is_due(time.monotonic())
    assert f"log={log}" in str(position_there(mirrored, tp).metadata)
    other = log._replace(topic_id="Bq2p0XvMR_-nZ1s7tQxY3w")
    with pytest.raises(FatalError, match="the position is of another log than this cluster's offset 3"):
        opened(mirrored, tp, other)


def opened(mirrored: Mirrored, tp: TP, here: Log = UNKNOWN) -> Writer:
    """Return a partition's writer, as in a process that has just taken it over."""
    settings = MirrorSettings(name="eu", bootstrap_servers=mirrored.there["bootstrap.servers"], replication_factor=1)
    wanted = copied(settings, {"orders": mirrored.topic}, PARTITIONS)
    mirror = Mirror(settings, mirrored.fleet.conf, mirrored.group, wanted)
    mirror.prepare()
    return mirror.open(tp, 0, here)
