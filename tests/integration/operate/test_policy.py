"""A cluster with a policy for new topics: records of 8 MiB at most, as managed clusters have it. On a real broker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import ConfigResource, ResourceType  # type: ignore[attr-defined]  # the stub forgets
from conftest import Headwater
from support.fleet import log_of, ready
from support.paths import TESTS
from support.waiting import until

from headwater.lab import kafka, processes
from headwater.lab.recorder import Recorder
from headwater.lab.workers import Workers
from pipeline.limits import HEADROOM
from pipeline.topics.admin import admin
from pipeline.topics.names import MAX_BYTES

pytestmark = pytest.mark.kafka
MOST = 8 << 20
SAID = "The cluster allows records of 8,388,608 bytes at most (max.message.bytes)"
FLOWS = '[{"name": "plain", "from": ["orders"], "to": "plain"}]'
WITH_SPARE = {"dead-letter", "retry", "flow-state"}
"""Topics that take more than a change, where they may."""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker with the policy."""
    directory = tmp_path_factory.mktemp("limited")
    if shutil.which("javac") is None:
        (pytest.fail if os.environ.get("HEADWATER_REQUIRE_KAFKA") == "1" else pytest.skip)("there is no javac on PATH")
    source, classes = TESTS / "support" / "LimitedTopics.java", directory / "classes"
    compile_it = ["javac", "-cp", f"{kafka.jars(print)}/*", "-d", str(classes), str(source)]
    subprocess.run(compile_it, check=True, capture_output=True, timeout=120)
    broker = kafka.apache_kafka(
        directory / "broker",
        "the test asks for it",
        print,
        properties={"create.topic.policy.class.name": "LimitedTopics"},
        class_path=[classes],
    )
    process = broker.start(detached=False)
    try:
        broker.wait_until_ready(process)
        yield broker.address
    finally:
        processes.stop([process])


def settings(address: str, **more: str) -> dict[str, str]:
    """Return a deployment of its own, as variables."""
    own = {"HEADWATER_PREFIX": f"t{uuid.uuid4().hex[:8]}", "HEADWATER_PARTITIONS": "2", "HEADWATER_FLOWS": FLOWS}
    broker = {"HEADWATER_KAFKA__BOOTSTRAP_SERVERS": address, "HEADWATER_KAFKA__REPLICATION_FACTOR": "1"}
    return {**own, **broker, **more}


def sizes(environment: dict[str, str]) -> dict[str, int]:
    """The size of records that the topics take, by their names without the prefix."""
    prefix = environment["HEADWATER_PREFIX"] + "."
    client = admin({"bootstrap.servers": environment["HEADWATER_KAFKA__BOOTSTRAP_SERVERS"]})
    names = [name for name in client.list_topics(timeout=10).topics if name.startswith(prefix)]
    found = client.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in names]) if names else {}
    return {topic.name.removeprefix(prefix): int(future.result(20)[MAX_BYTES].value) for topic, future in found.items()}


def warnings(headwater: Headwater, environment: dict[str, str]) -> list[dict[str, Any]]:
    """What check warns of; nothing of Kafka fails."""
    shown = headwater("check", "--json", **environment)
    found = [load for load in json.loads(shown.stdout) if load["what"].startswith(("topic ", "Kafka ", "size "))]
    assert [one for one in found if not one["ok"]] == []
    assert shown.stderr == ""
    return [one for one in found if one["is_warning"]]


def test_topics_are_made_with_what_the_cluster_allows_and_that_is_said_once(
    limited: str, headwater: Headwater, tmp_path: Path
) -> None:
    environment = settings(limited)
    (warning,) = warnings(headwater, environment)
    assert SAID in warning["detail"]
    assert warning["hint"] == f"kafka.max_message_bytes = {MOST}"
    assert sizes(environment) == {}, "check makes nothing"
    made = headwater("topics", "--create", **environment)
    assert made.returncode == 0, made.stderr
    (line,) = made.stderr.splitlines()
    assert SAID in line
    assert f"kafka.max_message_bytes = {MOST}" in line
    assert "missing" not in made.stdout
    assert set(sizes(environment).values()) == {MOST}
    assert headwater("topics", "--create", **environment).stderr == "", "they are there"
    (warning,) = warnings(headwater, environment)
    assert "take records of 8,388,608 bytes at most" in warning["detail"]
    assert warning["hint"].startswith(f"kafka.max_message_bytes = {MOST}")
    require_it_works(tmp_path, environment)


def test_a_worker_makes_its_topics_there_and_starts(limited: str, tmp_path: Path) -> None:
    environment = settings(limited)
    assert require_it_works(tmp_path, environment).count(SAID) == 1
    assert set(sizes(environment).values()) == {MOST}


@pytest.mark.parametrize("most", [MOST, MOST - HEADROOM, MOST - 1])
def test_nothing_is_said_where_the_setting_is_what_the_cluster_allows(
    most: int, limited: str, headwater: Headwater, tmp_path: Path
) -> None:
    environment = settings(limited, HEADWATER_KAFKA__MAX_MESSAGE_BYTES=str(most))
    assert warnings(headwater, environment) == []
    made = headwater("topics", "--create", **environment)
    assert (made.returncode, made.stderr) == (0, "")
    found = sizes(environment)
    assert {found[name] for name in found.keys() - WITH_SPARE} == {most}
    assert {found[name] for name in WITH_SPARE} == {MOST}, "as much of what they would have as there is"
    assert warnings(headwater, environment) == []
    if most == MOST:
        assert "max.message.bytes" not in require_it_works(tmp_path, environment)


def test_another_refusal_of_the_policy_stops_with_its_words_and_what_to_do(limited: str, headwater: Headwater) -> None:
    environment = {**settings(limited), "HEADWATER_PREFIX": "no"}
    made = headwater("topics", "--create", **environment)
    assert made.returncode != 0
    assert "Topics of this name are not made here." in made.stderr
    assert "the cluster has a policy for new topics" in made.stderr
    assert "allows records of" not in made.stderr
    checked = [
        load
        for load in json.loads(headwater("check", "--json", **environment).stdout)
        if load["what"].startswith("topic ")
    ]
    assert checked
    assert all("Topics of this name are not made here." in one["detail"] and not one["ok"] for one in checked)


def require_it_works(directory: Path, environment: dict[str, str]) -> str:
    """A worker carries changes from ingest to a sink; return what it has said."""
    prefix, conf = environment["HEADWATER_PREFIX"], {"bootstrap.servers": environment[BROKER]}
    workers = Workers(1, directory, {**environment, "HEADWATER_AGENTS": '["deduplicate", "transform"]'})
    workers.start()
    try:
        until(lambda: ready(workers.all[0]), "a worker that is ready")
        producer = Producer(conf)
        for number in range(10):
            keys = {"id": {"S": f"k{number}"}}
            value = {"eventID": f"e{number}", "eventName": "MODIFY", "tableName": "orders"}
            body = json.dumps({**value, "dynamodb": {"Keys": keys, "NewImage": keys}})
            producer.produce(f"{prefix}.ingest", body.encode(), json.dumps(keys).encode())
        assert producer.flush(20) == 0
        with Recorder(dict(conf), f"{prefix}.sink.plain") as sink:
            until(lambda: len(sink) == 10, "the changes")
    finally:
        workers.stop()
    return log_of(workers.all[0])


BROKER = "HEADWATER_KAFKA__BOOTSTRAP_SERVERS"
