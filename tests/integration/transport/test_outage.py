"""The broker is away: how a worker stops then, and how it goes on when the broker is back."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from confluent_kafka import Producer

from headwater.lab.killer import ask
from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints, Stack
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics
from pipeline.transport.transaction import TIMEOUT_MS

# Alone: it measures that a worker ends within ten seconds and goes on within forty, from the broker's restart on.
pytestmark = [pytest.mark.kafka, pytest.mark.alone]
DEADLINE = 90.0
BODY = {
    "eventName": "INSERT",
    "eventSource": "aws:dynamodb",
    "eventSourceARN": "arn:aws:dynamodb:eu-west-1:000000000000:table/t/stream/2026-11-23T00:00:00.000",
    "dynamodb": {"Keys": {"id": {"S": "k"}}, "NewImage": {"id": {"S": "k"}}},
}


def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        sleep(0.05)  # between two looks; nothing depends on it


@dataclass
class Place:
    """A broker of its own, which a test may end, and a worker with `deduplicate`."""

    stack: Stack
    conf: dict[str, Any]
    topics: Topics
    workers: Workers

    @property
    def worker(self) -> WorkerProcess:
        return self.workers.all[0]

    def log(self) -> str:
        return self.worker.log.read_text(errors="replace") if self.worker.log.exists() else ""

    def begin(self, numbers: range) -> Producer:
        """Begin to write changes; the producer tells when they are there."""
        producer = Producer(self.conf)
        for n in numbers:
            producer.produce(self.topics.ingest, json.dumps({"eventID": f"e{n}"} | BODY), f"k{n}")
            producer.poll(0)
        return producer

    def produce(self, numbers: range) -> None:
        assert self.begin(numbers).flush(30) == 0

    @contextmanager
    def raw(self) -> Iterator[Recorder]:
        with Recorder(self.conf, self.topics.raw) as raw:
            yield raw


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("outage"), broker="kafka", progress=print) as stack:
        yield stack


@pytest.fixture
def place(broker: Stack, tmp_path: Path) -> Iterator[Place]:
    endpoints = broker.endpoints
    assert isinstance(endpoints, Endpoints)
    prefix = f"t{uuid.uuid4().hex[:8]}"
    topics = Topics(Settings.model_validate({"prefix": prefix, "partitions": 2}))
    conf: dict[str, Any] = {"bootstrap.servers": endpoints.bootstrap_servers, "log_level": 0}
    ensure(admin(conf), topics.all(), 1)
    environment = {
        **os.environ,
        **endpoints.environment(),
        "HEADWATER_PREFIX": prefix,
        "HEADWATER_PARTITIONS": "2",
        "HEADWATER_AGENTS": '["deduplicate"]',
        "HEADWATER_KAFKA__SESSION_TIMEOUT": "6",
    }
    workers = Workers(1, tmp_path, environment, module="headwater.lab.chaos_worker")
    try:
        yield Place(broker, conf, topics, workers)
    finally:
        workers.stop()


def event_ids(raw: Recorder) -> list[str]:
    return sorted(json.loads(record.value() or b"")["eventID"] for record in raw)


def kill_broker_in_a_transaction(place: Place, numbers: range) -> Producer:
    """Kill the broker when the worker has written outputs of these changes and not committed them.

    The worker may do that before it has all of them: the producer has the rest, for a broker that is back.
    """
    process = place.stack.processes[0]
    ask(place.worker.state, "finish", process.pid)
    producer = place.begin(numbers)
    until(lambda: not process.alive(), "the end of the broker")
    place.stack.kill_broker()
    return producer


def test_a_worker_that_is_told_to_stop_ends_within_ten_seconds(place: Place) -> None:
    place.workers.start()
    with place.raw() as raw:
        place.produce(range(500))
        until(lambda: len(raw) == 500, "500 changes")
    place.worker.signal(signal.SIGTERM)
    until(lambda: not place.worker.alive(), "the end of the worker", 10)
    assert "could not stop" not in place.log()


def test_a_worker_ends_within_ten_seconds_while_the_broker_is_down_and_its_restart_is_exact(place: Place) -> None:
    place.workers.start()
    with place.raw() as raw:
        place.produce(range(500))
        until(lambda: len(raw) == 500, "500 changes")
        producer = kill_broker_in_a_transaction(place, range(400, 1_000))
        place.worker.signal(signal.SIGTERM)
        until(lambda: not place.worker.alive(), "the end of the worker", 10)
        assert "Traceback" not in place.log()
        place.stack.start_broker()
        place.worker.start()
        assert producer.flush(60) == 0
        place.produce(range(900, 1_500))
        until(lambda: len(raw) >= 1_500, "1,500 changes")
        assert event_ids(raw) == sorted(f"e{n}" for n in range(1_500))


def test_a_worker_that_was_started_without_a_broker_can_be_stopped(place: Place) -> None:
    place.stack.kill_broker()
    try:
        place.worker.start()
        until(lambda: "Starting..." in place.log(), "a worker that starts")
        place.worker.signal(signal.SIGTERM)
        until(lambda: not place.worker.alive(), "the end of the worker", 10)
    finally:
        place.stack.start_broker()


def test_an_outage_longer_than_the_transaction_timeout_loses_and_doubles_nothing(place: Place) -> None:
    place.workers.start()
    with place.raw() as raw:
        place.produce(range(500))
        until(lambda: len(raw) == 500, "500 changes")
        producer = kill_broker_in_a_transaction(place, range(400, 1_000))
        back = monotonic() + TIMEOUT_MS / 1000 + 2
        until(lambda: monotonic() > back, "an outage that is longer than the transaction may last")
        place.stack.start_broker()
        assert producer.flush(60) == 0
        place.produce(range(900, 1_500))

        def all_out() -> bool:
            place.workers.watch()  # it may have ended, with its reason, and is started again
            return len(raw) >= 1_500

        until(all_out, "1,500 changes")
        assert event_ids(raw) == sorted(f"e{n}" for n in range(1_500))
    assert "Traceback" not in place.log()


def test_a_worker_continues_after_a_clean_restart_of_the_broker(place: Place) -> None:
    """The broker is out of the metadata for a while, and with it the group's coordinator that librdkafka knows."""
    place.workers.start()
    with place.raw() as raw:
        place.produce(range(500))
        until(lambda: len(raw) == 500, "500 changes")
        place.stack.stop_broker()
        place.stack.start_broker()
        place.produce(range(400, 1_000))
        until(lambda: len(raw) >= 1_000, "1,000 changes", 40)
        assert event_ids(raw) == sorted(f"e{n}" for n in range(1_000))
    assert place.worker.alive()
    assert place.worker.starts == 1
    assert "the producer is recreated" in place.log()


def test_a_worker_that_was_frozen_for_longer_than_its_transaction_continues(place: Place) -> None:
    """The coordinator has ended its transaction and fenced its producer off; another would be in its place."""
    place.workers.start()
    with place.raw() as raw:
        place.produce(range(500))
        until(lambda: len(raw) == 500, "500 changes")
        ask(place.worker.state, "finish", 0, signal.SIGSTOP)
        place.produce(range(400, 1_000))
        over = monotonic() + TIMEOUT_MS / 1000 + 3
        until(lambda: monotonic() > over, "a standstill that is longer than the transaction may last")
        assert len(raw) == 500
        place.worker.signal(signal.SIGCONT)
        until(lambda: len(raw) >= 1_000, "1,000 changes", 40)
        assert event_ids(raw) == sorted(f"e{n}" for n in range(1_000))
    assert place.worker.alive()
    assert place.worker.starts == 1
