"""A worker dies; another has its seen table at hand."""

from __future__ import annotations

import json
import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics

pytestmark = pytest.mark.kafka
PARTITIONS = 4
Fleet = tuple[Workers, Topics, dict[str, Any]]
RECOVERED = re.compile(r"Seen table of \S+\[(\d)\]: offset (-?\d+) -> (\d+)")


@pytest.fixture(params=[(1, "classic"), (1, "consumer")], ids=["classic", "consumer"])
def fleet(stack: Endpoints, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Two workers; the parameter says how many standbys there are, and the group's protocol."""
    replicas, protocol = request.param
    prefix = f"t{uuid.uuid4().hex[:8]}"
    topics = Topics(Settings.model_validate({"prefix": prefix, "partitions": PARTITIONS}))
    conf: dict[str, Any] = {"bootstrap.servers": stack.bootstrap_servers}
    ensure(admin(conf), topics.all(), 1)
    environment = {
        **stack.environment(),
        "HEADWATER_PREFIX": prefix,
        "HEADWATER_PARTITIONS": str(PARTITIONS),
        "HEADWATER_AGENTS": '["deduplicate"]',
        "HEADWATER_STANDBY_REPLICAS": str(replicas),
        "HEADWATER_KAFKA__GROUP_PROTOCOL": protocol,
    }
    if protocol == "classic":
        environment["HEADWATER_KAFKA__SESSION_TIMEOUT"] = "6"
    workers = Workers(2, tmp_path, environment)
    workers.start()
    try:
        yield workers, topics, conf
    finally:
        workers.stop()


def produce(conf: dict[str, Any], topic: str, numbers: range) -> None:
    producer = Producer(conf)
    for n in numbers:
        producer.produce(topic, json.dumps({"eventID": f"e{n}", "eventName": "INSERT"} | BODY), f"k{n}")
        producer.poll(0)
    assert producer.flush(30) == 0


BODY = {
    "eventSource": "aws:dynamodb",
    "eventSourceARN": "arn:aws:dynamodb:eu-west-1:000000000000:table/t/stream/2026-11-23T00:00:00.000",
    "dynamodb": {"Keys": {"id": {"S": "k"}}, "NewImage": {"id": {"S": "k"}}},
}


def copies(worker: WorkerProcess) -> set[int]:
    """Return the partitions of which a worker has begun to keep a copy."""
    log = worker.log.read_text(errors="replace") if worker.log.exists() else ""
    return {int(partition) for partition in re.findall(r"Standby of \S+\[(\d)\]: from offset", log)}


def recoveries(worker: WorkerProcess, since: int) -> list[tuple[int, int, int]]:
    """Return partition, first and last offset of the recoveries in a worker's log, from a place in it on."""
    found = RECOVERED.findall(worker.log.read_text(errors="replace")[since:])
    return [(int(partition), int(first), int(last)) for partition, first, last in found]


def test_the_partitions_of_a_dead_worker_are_warm_at_another(fleet: Fleet) -> None:
    workers, topics, conf = fleet
    one, other = workers.all
    # In a classic rebalance all partitions are given out anew; with KIP-848 only those of the dead worker move.
    moved = PARTITIONS if one.environment["HEADWATER_KAFKA__GROUP_PROTOCOL"] == "classic" else PARTITIONS // 2
    with Recorder(conf, topics.raw) as raw:
        until(lambda: len(copies(one)) >= 2 and len(copies(other)) >= 2, "two copies each")
        produce(conf, topics.ingest, range(3_000))
        until(lambda: len(raw) == 3_000, "3,000 changes")
        before = len(one.log.read_text(errors="replace"))
        other.signal(signal.SIGKILL)
        until(lambda: len(recoveries(one, before)) >= moved, "the partitions of the dead worker")
        for _partition, first, last in recoveries(one, before):
            # By the time that it is taken for dead, all that it has committed has been copied.
            assert first == last > 0
        produce(conf, topics.ingest, range(1_000, 4_000))
        until(lambda: len(raw) >= 4_000, "1,000 more")
        workers.watch()  # starts it again: some partitions go back to it, and their state stays here as a copy
        until(lambda: "Seen table of" in other.log.read_text(errors="replace")[-5000:], "partitions at both")
        produce(conf, topics.ingest, range(5_000))
        until(lambda: len(raw) >= 5_000, "1,000 more")
        other_before = len(one.log.read_text(errors="replace"))
        other.signal(signal.SIGTERM)
        until(lambda: len(recoveries(one, other_before)) >= moved, "the partitions, handed over")
        assert all(first > 0 for _, first, _ in recoveries(one, other_before))
        produce(conf, topics.ingest, range(4_000, 6_000))
        until(lambda: len(raw) >= 6_000, "1,000 more")
        ids = [json.loads(record.value() or b"")["eventID"] for record in raw]
    assert sorted(ids) == sorted(f"e{n}" for n in range(6_000))


@pytest.mark.parametrize("fleet", [(0, "classic")], indirect=True, ids=["classic"])
def test_partitions_that_stay_in_a_rebalance_are_not_recovered_again(fleet: Fleet) -> None:
    """Their newest IDs are in memory and in no file: closed, they would have to be read again."""
    workers, topics, conf = fleet
    one, other = workers.all
    until(lambda: owned(one) == owned(other) == PARTITIONS // 2, "partitions at both")
    with Recorder(conf, topics.raw) as raw:
        produce(conf, topics.ingest, range(3_000))
        until(lambda: len(raw) == 3_000, "3,000 changes")
        before = len(one.log.read_text(errors="replace"))
        other.signal(signal.SIGTERM)
        until(lambda: len(recoveries(one, before)) >= PARTITIONS, "all partitions at one")
        stayed = [(first, last) for _, first, last in recoveries(one, before) if first > 0]
        assert len(stayed) == PARTITIONS // 2
        assert all(first == last for first, last in stayed)
        produce(conf, topics.ingest, range(4_000))
        until(lambda: len(raw) >= 4_000, "1,000 more")
        ids = [json.loads(record.value() or b"")["eventID"] for record in raw]
    assert sorted(ids) == sorted(f"e{n}" for n in range(4_000))


def owned(worker: WorkerProcess) -> int:
    """Return how many partitions a worker has, as it says itself."""
    log = worker.log.read_text(errors="replace") if worker.log.exists() else ""
    return int((re.findall(r"Partitions: .* (\d+) in all", log) or ["0"])[-1])
