"""A position knows its log: retention, recreated topics, offsets that are gone or beyond the end. Each on a real broker."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from conftest import Headwater
from support.fleet import Fleet, log_of, ready
from support.transform_workers import Flowing
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import Workers
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic

pytestmark = pytest.mark.kafka
PARTITIONS = 2


@pytest.fixture
def fleet(stack: Endpoints, tmp_path: Path) -> Fleet:
    return Fleet(stack, tmp_path, partitions=PARTITIONS)


def put(fleet: Fleet, first: int, end: int, topic: str = "") -> None:
    """Write changes to ingest, as the agent of that name does; the key of each is its number modulo 10."""
    producer = Producer({**fleet.conf, "partitioner": "murmur2_random"})
    for number in range(first, end):
        keys = {"id": {"S": f"k{number % 10}"}}
        value = {"eventID": f"{number:032x}", "eventName": "MODIFY", "dynamodb": {"Keys": keys, "NewImage": keys}}
        producer.produce(topic or fleet.topics.ingest, json.dumps(value).encode(), f"k{number % 10}".encode())
    assert producer.flush(20) == 0


def trim(fleet: Fleet, topic: str) -> dict[int, int]:
    """Delete all records of a topic that are there, as retention does; return the first offsets that are left."""
    client = AdminClient(fleet.conf)
    tps = [TopicPartition(topic, partition, -1) for partition in range(PARTITIONS)]  # -1: up to the high watermark
    return {tp.partition: future.result(20).low_watermark for tp, future in client.delete_records(tps).items()}


def recreate(fleet: Fleet, topic: str) -> None:
    """Delete a topic and make it again, as soon as the broker has forgotten it."""
    client = admin(fleet.conf)
    client.delete_topics([topic])[topic].result(20)

    def made() -> bool:
        ensure(client, [Topic(topic, PARTITIONS, "made again", {"retention.ms": "-1"})], 1)
        return True

    until(lambda: topic not in client.list_topics(timeout=10).topics, "the end of the topic")
    until(made, "the topic")


def numbers(recorder: Recorder) -> list[int]:
    return sorted(int(json.loads(record.value() or b"{}")["eventID"], 16) for record in recorder)


def gaps(headwater: Headwater, environment: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(headwater("gaps", "--json", **environment).stdout)
    return found


@contextmanager
def ended(workers: Workers) -> Iterator[None]:
    """Start workers that end by themselves; at the end of the block they have."""
    workers.start()
    try:
        yield
        until(lambda: not workers.all[0].alive(), "the end of the worker")
    finally:
        workers.stop()


def test_what_retention_took_from_a_stopped_agent_is_a_gap_with_its_offsets(fleet: Fleet, headwater: Headwater) -> None:
    with Recorder(fleet.conf, fleet.topics.raw) as raw:
        put(fleet, 0, 100)
        with fleet.running():
            until(lambda: len(raw) == 100, "the first changes")
        put(fleet, 100, 200)
        left = trim(fleet, fleet.topics.ingest)
        put(fleet, 200, 260)
        with fleet.running():
            until(lambda: len(raw) == 160, "the changes that are left")
            until(lambda: len(gaps(headwater, fleet.environment)) == PARTITIONS, "the gaps")
            shown = json.loads(headwater("status", "--json", **fleet.environment).stdout)
        assert numbers(raw) == [*range(100), *range(200, 260)], "each once"
    found = gaps(headwater, fleet.environment)
    assert {gap["partition"]: gap["last"] + 1 for gap in found} == left
    assert sum(gap["count"] for gap in found) == 100 + 0, "the changes alone: nothing else was written there"
    assert {(gap["cause"], gap["topic"], gap["group"]) for gap in found} == {
        ("retention", fleet.topics.ingest, fleet.prefix)
    }
    assert all("/" in gap["log"] for gap in found), "which log they are of"
    assert all(time.time() - 600 < gap["until"] < time.time() for gap in found), "when it was over"
    assert shown["gaps"] == PARTITIONS
    assert headwater("gaps", **fleet.environment).returncode == 1
    with fleet.running():  # a restart tells nothing twice
        put(fleet, 260, 261)
    assert len(gaps(headwater, fleet.environment)) == PARTITIONS


def test_retention_that_overtakes_a_worker_while_it_is_frozen_is_a_gap_and_it_continues(
    fleet: Fleet, headwater: Headwater
) -> None:
    with Recorder(fleet.conf, fleet.topics.raw) as raw, fleet.running() as workers:
        put(fleet, 0, 100)
        until(lambda: len(raw) == 100, "the first changes")
        workers.freeze(0, 3.0)
        put(fleet, 100, 200)
        trim(fleet, fleet.topics.ingest)
        put(fleet, 200, 260)
        until(lambda: thawed(workers), "the end of the frost")
        until(lambda: numbers(raw)[-60:] == list(range(200, 260)), "what came behind the gap")
        until(
            lambda: lost(gaps(headwater, fleet.environment)) == 200 - len(set(numbers(raw)) & set(range(200))), "gaps"
        )
        assert len(set(numbers(raw))) == len(raw), "nothing twice"


def thawed(workers: Workers) -> bool:
    workers.thaw()
    return not workers.frozen


def lost(found: list[dict[str, Any]]) -> int:
    return sum(gap["count"] for gap in found)


def test_a_recreated_ingest_topic_stops_the_worker_and_accepting_it_continues_exactly_once(
    fleet: Fleet, headwater: Headwater
) -> None:
    with Recorder(fleet.conf, fleet.topics.raw) as raw:
        put(fleet, 0, 100)
        with fleet.running():
            until(lambda: len(raw) == 100, "the first changes")
        recreate(fleet, fleet.topics.ingest)
        put(fleet, 90, 260)  # some that were seen, and new ones
        workers = fleet.workers(1)
        with ended(workers):
            pass
        said = log_of(workers.all[0])
        assert f"headwater positions accept {fleet.topics.ingest}" in said, said[-2_000:]
        assert "recreated" in said
        assert "Traceback" not in said
        accepted = headwater("positions", "accept", fleet.topics.ingest, "--json", **fleet.environment)
        assert accepted.returncode == 0, accepted.stderr
        with fleet.running():
            until(lambda: len(raw) == 260, "the new changes")
        assert numbers(raw) == list(range(260)), "each once, also what both topics had"


def test_a_topic_that_is_recreated_while_a_worker_runs_stops_it_before_it_commits_anything_of_the_new_one(
    fleet: Fleet,
) -> None:
    with Recorder(fleet.conf, fleet.topics.raw) as raw:
        put(fleet, 0, 100)
        workers = fleet.workers(1)
        with ended(workers):
            until(lambda: ready(workers.all[0]) and len(raw) == 100, "the first changes")
            recreate(fleet, fleet.topics.ingest)
            put(fleet, 1_000, 1_400)  # more than there were: the worker's next offset exists again
        assert f"the topic {fleet.topics.ingest} " in log_of(workers.all[0]).rpartition("CRITICAL")[2]
        assert numbers(raw) == list(range(100))


def test_an_offset_beyond_the_end_of_its_topic_stops_the_worker(fleet: Fleet, headwater: Headwater) -> None:
    put(fleet, 0, 100)
    with Recorder(fleet.conf, fleet.topics.raw) as raw, fleet.running():
        until(lambda: len(raw) == 100, "the first changes")
    set_offset(fleet.conf, fleet.prefix, TopicPartition(fleet.topics.ingest, 0, 1_000_000))
    workers = fleet.workers(1)
    with ended(workers):
        pass
    assert "committed offset 1000000" in log_of(workers.all[0])
    assert headwater("positions", **fleet.environment).returncode == 1
    assert headwater("positions", "accept", fleet.topics.ingest, **fleet.environment).returncode == 0
    with Recorder(fleet.conf, fleet.topics.raw) as raw, fleet.running():
        put(fleet, 100, 150)
        until(lambda: len(raw) == 150, "the changes that came later")


def set_offset(conf: dict[str, Any], group: str, at: TopicPartition) -> None:
    client = AdminClient(conf)  # it must live until the answer is there
    (future,) = client.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, [at])]).values()
    assert future.result(20).topic_partitions[0].error is None


def test_positions_of_a_deployment_that_runs_are_shown_and_are_fine(fleet: Fleet, headwater: Headwater) -> None:
    put(fleet, 0, 10)
    with Recorder(fleet.conf, fleet.topics.raw) as raw, fleet.running():
        until(lambda: len(raw) == 10, "the changes")
        shown = headwater("positions", "--json", **fleet.environment)
    assert shown.returncode == 0
    mine = [load for load in json.loads(shown.stdout) if load["topic"] == fleet.topics.ingest]
    assert len(mine) == PARTITIONS
    assert headwater("positions", "accept", "nowhere", **fleet.environment).returncode == 2


def test_a_recreated_raw_topic_stops_transform_and_accepting_it_continues(
    stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    flowing = Flowing(stack, tmp_path, [{"name": "all", "from": ["orders"], "to": "all"}])
    with flowing.recorded(flowing.topics.sink("all")) as sink:
        for number in range(20):
            flowing.change(f"k{number}", {"n": number})
        with flowing.fleet.running():
            until(lambda: len(sink) == 20, "the first changes")
        recreate(flowing.fleet, flowing.topics.raw)
        for number in range(20, 50):
            flowing.change(f"k{number}", {"n": number})
        workers = flowing.fleet.workers(1)
        with ended(workers):
            pass
        assert f"headwater positions accept {flowing.topics.raw}" in log_of(workers.all[0])
        assert headwater("positions", "accept", flowing.topics.raw, **flowing.environment()).returncode == 0
        with flowing.fleet.running():
            until(lambda: len(sink) == 50, "the changes of the new topic")


COUNTS = """
import os
import faust
from pipeline.state.table import Table

app = faust.App(
    {name!r}, broker="headwater://{servers}", store="headwater://", Table=Table, topic_partitions=1,
    topic_replication_factor=1, datadir={datadir!r}, web_port=int(os.environ["HEADWATER_WEB__PORT"]), {more}
)
words = app.topic({name!r} + "-words", value_serializer="raw", value_type=bytes)
counts = app.Table("counts", default=int)


@app.agent(words)
async def count(stream):
    async for word in stream:
        name = word.decode()
        counts[name] += 1
        print(f"COUNTED {{name}} {{counts[name]}}", flush=True)
"""


@pytest.fixture
def counting(stack: Endpoints, tmp_path: Path) -> Counting:
    return Counting(stack, tmp_path)


class Counting:
    """An ordinary Faust app with a table."""

    def __init__(self, stack: Endpoints, directory: Path) -> None:
        self.name, self.directory = f"t{uuid.uuid4().hex[:8]}", directory
        self.servers = stack.bootstrap_servers
        self.conf: dict[str, Any] = {"bootstrap.servers": self.servers}
        self.words = f"{self.name}-words"
        ensure(admin(self.conf), [Topic(self.words, 1, "words")], 1)

    def write(self, *words: str) -> None:
        producer = Producer(self.conf)
        for word in words:
            producer.produce(self.words, word.encode(), partition=0)
        assert producer.flush(20) == 0

    def workers(self, more: str = "") -> Workers:
        module = f"counting_{uuid.uuid4().hex[:6]}"
        app = COUNTS.format(name=self.name, servers=self.servers, datadir=str(self.directory / "data"), more=more)
        (self.directory / f"{module}.py").write_text(app)
        (self.directory / "data").mkdir(exist_ok=True)
        return Workers(1, self.directory, {"PYTHONPATH": str(self.directory)}, module=module)


def test_a_user_table_is_not_counted_twice_when_kafka_has_forgotten_the_groups_offsets(counting: Counting) -> None:
    counting.write("a", "b", "a")
    workers = counting.workers()
    workers.start()
    until(lambda: "COUNTED a 2" in log_of(workers.all[0]), "the counts")
    workers.stop()
    client = AdminClient(counting.conf)  # it must live until the answer is there
    client.delete_consumer_groups([counting.name])[counting.name].result(20)
    again = counting.workers()
    again.all[0].log.unlink()
    with ended(again):
        pass
    said = log_of(again.all[0])
    assert "records would count twice" in said
    assert "--to-offset 3 --execute" in said
    assert "COUNTED" not in said


def test_a_user_table_is_not_counted_twice_when_the_offsets_are_set_back(counting: Counting) -> None:
    counting.write("a", "b", "a")
    workers = counting.workers()
    workers.start()
    until(lambda: "COUNTED a 2" in log_of(workers.all[0]), "the counts")
    workers.stop()
    set_offset(counting.conf, counting.name, TopicPartition(counting.words, 0, 1))
    again = counting.workers()
    again.all[0].log.unlink()
    with ended(again):
        pass
    assert "has committed offset 1: records would count twice" in log_of(again.all[0])


def test_a_faust_app_begins_where_its_setting_says_when_nothing_was_committed(counting: Counting) -> None:
    counting.write("old")
    workers = counting.workers("consumer_auto_offset_reset='latest'")
    workers.start()
    try:
        until(lambda: "Worker ready" in log_of(workers.all[0]) and "in all" in log_of(workers.all[0]), "a ready worker")
        counting.write("new")
        until(lambda: "COUNTED new 1" in log_of(workers.all[0]), "the new word")
        assert "COUNTED old" not in log_of(workers.all[0])
    finally:
        workers.stop()
