"""Workers on Apache Kafka: what goes in, what comes out, what is left when they stop."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from conftest import Headwater
from mypy_boto3_dynamodb import DynamoDBClient
from support.paths import ROOT
from support.waiting import until

from headwater.lab import processes
from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import Workers
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic, Topics

pytestmark = pytest.mark.kafka
ARN = "arn:aws:dynamodb:eu-west-1:000000000000:table/{table}/stream/2026-11-23T00:00:00.000"


@dataclass
class Deployment:
    """Topics of its own on the shared stack, and workers when they are asked for."""

    endpoints: Endpoints
    directory: Path
    prefix: str
    table: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.endpoints.environment(),
            "HEADWATER_PREFIX": self.prefix,
            "HEADWATER_PARTITIONS": "2",
            "HEADWATER_SOURCES": json.dumps([{"tables": [self.table], "discovery_interval": 1}]),
            "HEADWATER_FLOWS": json.dumps([{"name": "all", "to": [{"sink": "all"}]}]),
            "HEADWATER_LAKE__URL": f"file://{self.directory / 'lake'}",
            "HEADWATER_LAKE__MAX_AGE": "0.5",
            "HEADWATER_KAFKA__SESSION_TIMEOUT": "6",
        }

    @property
    def conf(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.endpoints.bootstrap_servers}

    @property
    def topics(self) -> Topics:
        flow = {"name": "all", "to": [{"sink": "all"}]}
        return Topics(Settings.model_validate({"prefix": self.prefix, "partitions": 2, "flows": [flow]}))

    @contextmanager
    def workers(self, *agents: str, count: int = 1) -> Iterator[Workers]:
        """Run workers with these agents."""
        running = Workers(count, self.directory, {**self.environment, "HEADWATER_AGENTS": json.dumps(agents)})
        running.start()
        try:
            yield running
        finally:
            running.stop()

    def log(self) -> str:
        return (self.directory / "worker-1.log").read_text()


@pytest.fixture
def deployment(stack: Endpoints, tmp_path: Path) -> Iterator[Deployment]:
    name = f"t{uuid.uuid4().hex[:8]}"
    found = Deployment(stack, tmp_path, name, name)
    ensure(admin(found.conf), found.topics.all(), 1)
    yield found


def change(number: int, table: str = "t") -> bytes:
    return json.dumps(
        {
            "eventID": f"e{number}",
            "eventName": "INSERT",
            "eventSource": "aws:dynamodb",
            "eventSourceARN": ARN.format(table=table),
            "dynamodb": {"Keys": {"id": {"S": f"k{number}"}}, "NewImage": {"id": {"S": f"k{number}"}}},
        }
    ).encode()


def produce(deployment: Deployment, *values: bytes, **headers: bytes) -> None:
    producer = Producer(deployment.conf)
    for value in values:
        producer.produce(deployment.topics.ingest, value, b"key", headers=list(headers.items()))
    assert producer.flush(20) == 0


def test_what_is_not_a_change_becomes_a_dead_letter_with_the_reason(deployment: Deployment) -> None:
    topics = deployment.topics
    with (
        Recorder(deployment.conf, topics.raw) as raw,
        Recorder(deployment.conf, topics.dead_letter) as dead,
        deployment.workers("deduplicate"),
    ):
        produce(deployment, b"not json", b'{"eventName":"INSERT"}', change(1), change(1), trace=b"abc")
        until(lambda: len(dead) == 2 and len(raw) == 1, "two dead letters and one change")
    letters = sorted(dead, key=lambda letter: letter.offset() or 0)
    assert [letter.value() for letter in letters] == [b"not json", b'{"eventName":"INSERT"}']
    headers: dict[str, Any] = dict(letters[0].headers() or [])
    assert headers["trace"] == b"abc"
    assert headers["__connect.errors.topic"] == topics.ingest.encode()
    assert headers["__connect.errors.offset"] == b"0"
    assert headers["__connect.errors.stage"] == b"deduplicate"
    assert headers["__connect.errors.exception.class.name"] == b"MalformedChangeError"
    assert b"not a change" in headers["__connect.errors.exception.message"]
    assert letters[0].key() == b"key"


def put(dynamodb: DynamoDBClient, table: str, numbers: range) -> None:
    for number in numbers:
        dynamodb.put_item(TableName=table, Item={"id": {"S": f"k{number}"}, "n": {"N": str(number)}})


def make_table(dynamodb: DynamoDBClient, table: str) -> None:
    dynamodb.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )


def test_ingest_continues_where_it_was_after_a_restart(deployment: Deployment, dynamodb: DynamoDBClient) -> None:
    make_table(dynamodb, deployment.table)
    with Recorder(deployment.conf, deployment.topics.ingest) as ingest:
        put(dynamodb, deployment.table, range(30))
        with deployment.workers("ingest"):
            until(lambda: len(ingest) >= 30, "30 changes")
        put(dynamodb, deployment.table, range(30, 50))
        with deployment.workers("ingest"):
            until(lambda: len(ingest) >= 50, "50 changes")
            put(dynamodb, deployment.table, range(50, 60))
            until(lambda: len(ingest) >= 60, "60 changes")
        numbers = sorted(int(json.loads(r.value() or b"")["dynamodb"]["NewImage"]["n"]["N"]) for r in ingest)
    assert numbers == list(range(60)), "each once: the position was committed with the changes"


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_the_seen_table_comes_back_from_its_changelog_when_the_state_is_gone(
    deployment: Deployment, guarantee: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_PROCESSING_GUARANTEE", guarantee)
    with Recorder(deployment.conf, deployment.topics.raw) as raw:
        with deployment.workers("deduplicate"):
            produce(deployment, *map(change, range(100)))
            until(lambda: len(raw) == 100, "100 changes")
        (deployment.directory / "worker-1.state").rename(deployment.directory / "lost.state")
        with deployment.workers("deduplicate"):
            produce(deployment, *map(change, range(50, 150)))
            until(lambda: len(raw) >= 150, "50 more")
        ids = [json.loads(record.value() or b"")["eventID"] for record in raw]
    assert sorted(ids) == sorted(f"e{n}" for n in range(150))


def test_invariant_6_two_workers_cannot_share_a_state_directory(deployment: Deployment, headwater: Headwater) -> None:
    with ExitStack() as stack:
        workers = stack.enter_context(deployment.workers("deduplicate"))
        until(lambda: "Ready" in deployment.log(), "a worker that is ready")
        state = str(deployment.directory / "worker-1.state")
        done = headwater("run", "deduplicate", "--without-web", **deployment.environment, HEADWATER_STATE_DIR=state)
        assert workers.all[0].alive()
    assert done.returncode == 1
    assert f"the state directory {state} is in use by another worker" in done.stderr
    assert "Traceback" not in done.stderr


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own worker's address
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_a_worker_tells_how_it_is(deployment: Deployment, headwater: Headwater) -> None:
    with deployment.workers("deduplicate", "transform", "lake") as workers:
        url = workers.all[0].process.address  # type: ignore[union-attr]
        until(lambda: get(f"{url}/readyz")[0] == 200, "readiness")
        assert get(f"{url}/livez") == (200, "ok\n")
        produce(deployment, *map(change, range(20)), change(1), b"nonsense")
        until(
            lambda: 'headwater_delivered_total{destination="lake",kind="rows"} 20.0' in get(f"{url}/metrics")[1],
            "20 rows in the lake",
        )
        metrics = get(f"{url}/metrics")[1]
        assert "headwater_duplicates_dropped_total 1.0" in metrics
        assert 'headwater_dead_letters_total{stage="deduplicate"} 1.0' in metrics
        assert 'headwater_changes_total{agent="transform"} 20.0' in metrics
        status = json.loads(headwater("status", "--json", **deployment.environment).stdout)
    assert status["workers"] == 1
    assert status["dead_letters"] == 1
    assert {lag["agent"]: lag["records"] for lag in status["lag"]} == {"deduplicate": 0, "transform": 0, "lake": 0}
    files = sorted((deployment.directory / "lake").rglob("*.parquet"))
    assert files
    assert {file.parents[2].name for file in files} == {"source_table=t"}
    assert json.loads(headwater("lake", "verify", "--json", **deployment.environment).stdout)["rows"] == 20


def test_a_spare_worker_is_ready_and_stops_in_peace(deployment: Deployment) -> None:
    """Three workers for two partitions: one has nothing to do, and is no less well for that."""
    with deployment.workers("deduplicate", count=3) as workers:
        urls = [worker.process.address for worker in workers.all if worker.process is not None]
        until(lambda: all(get(f"{url}/readyz")[0] == 200 for url in urls), "three workers that are ready")
        until(lambda: "headwater_partitions 0.0" in "".join(get(f"{url}/metrics")[1] for url in urls), "a spare one")
    for worker in workers.all:
        assert "Traceback" not in worker.log.read_text()
        assert worker.starts == 1


def test_a_change_that_nests_too_deep_is_a_dead_letter_and_no_crash(deployment: Deployment) -> None:
    deep = b'{"eventID":"e1","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with (
        Recorder(deployment.conf, deployment.topics.raw) as raw,
        Recorder(deployment.conf, deployment.topics.dead_letter) as dead,
        deployment.workers("deduplicate") as workers,
    ):
        produce(deployment, deep, change(2))
        until(lambda: len(dead) == 1 and len(raw) == 1, "a dead letter and a change")
        assert workers.all[0].starts == 1


def test_the_procfile_runs_one_worker_an_agent(deployment: Deployment, dynamodb: DynamoDBClient) -> None:
    make_table(dynamodb, deployment.table)
    put(dynamodb, deployment.table, range(10))
    root = ROOT
    log = deployment.directory / "honcho.log"
    honcho = processes.start(
        "honcho",
        # As the README says: the others need settings of their own.
        [
            *(sys.executable, "-m", "honcho", "-f", str(root / "Procfile"), "-d", str(deployment.directory), "start"),
            *("ingest", "deduplicate", "transform", "lake"),
        ],
        log=log,
        address="",
        environment={**deployment.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        detached=False,
    )
    with Recorder(deployment.conf, deployment.topics.sink("all")) as sink:
        until(lambda: len(sink) == 10, "10 changes through three workers")
        until(lambda: len(list((deployment.directory / "lake").rglob("*.parquet"))) > 0, "files by the fourth")
    processes.stop([honcho])
    assert "Traceback" not in log.read_text()


def test_faust_bug_acks_in_finally_an_ordinary_agent_that_raises_commits_nothing(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Faust acks a message also when its agent raises: the slice must not commit for all that."""
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "from pipeline.runtime.app import create_app\n"
        "from pipeline.settings.load import load\n"
        "app = create_app(load())\n"
        "words = app.topic(os.environ['WORDS'], value_type=bytes, value_serializer='raw', partitions=2)\n"
        "out = app.topic(os.environ['WORDS'] + '.out', value_type=bytes, value_serializer='raw', partitions=2)\n"
        "@app.agent(words)\n"
        "async def shout(stream):\n"
        "    async for word in stream:\n"
        "        await out.send(value=word.upper())\n"
        "        if word == b'poison' and not os.path.exists('cured'):\n"
        "            raise RuntimeError('poison')\n"
    )
    words = f"{deployment.prefix}.words"
    ensure(admin(deployment.conf), [Topic(words, 2, "words"), Topic(f"{words}.out", 2, "shouts")], 1)
    producer = Producer(deployment.conf)
    for word in ("good", "poison", "better"):
        producer.produce(words, word, partition=0)
    assert producer.flush(20) == 0

    def start() -> processes.Process:
        return processes.start(
            "mine",
            [sys.executable, "-m", "faust", "-A", "mine", "worker", "-l", "info", "--without-web"],
            log=tmp_path / "mine.log",
            address="",
            environment={
                **deployment.environment,
                "WORDS": words,
                "HEADWATER_AGENTS": '["deduplicate"]',
                "HEADWATER_STATE_DIR": str(tmp_path / "state"),
                "HEADWATER_WEB__ENABLED": "false",
                "PYTHONPATH": str(tmp_path),
            },
            detached=False,
        )

    with Recorder(deployment.conf, f"{words}.out") as out:
        first = start()
        until(lambda: not first.alive(), "the end of the worker")
        processes.stop([first])
        assert "RuntimeError('poison')" in (tmp_path / "mine.log").read_text()
        assert len(out) == 0, "nothing of the slice was committed"
        (tmp_path / "cured").touch()
        second = start()
        until(lambda: len(out) >= 3, "three words")
        processes.stop([second])
        assert [record.value() for record in out.records.get(0, []) + out.records.get(1, [])].count(b"GOOD") == 1
        assert sorted(str(record.value()) for record in out) == ["b'BETTER'", "b'GOOD'", "b'POISON'"]


def test_a_group_whose_offsets_are_forgotten_stops_the_worker_with_what_to_type(
    deployment: Deployment, headwater: Headwater
) -> None:
    with Recorder(deployment.conf, deployment.topics.sink("all")) as sink:
        with deployment.workers("deduplicate", "transform"):
            produce(deployment, *map(change, range(20)))
            until(lambda: len(sink) == 20, "20 changes")
        for future in admin(deployment.conf).delete_consumer_groups([deployment.prefix]).values():
            future.result(20)  # as Kafka does after offsets.retention.minutes
        topics = deployment.topics
        for agent, topic in (("transform", topics.raw), ("deduplicate", topics.ingest)):
            done = headwater("run", agent, "--without-web", **deployment.environment)
            assert done.returncode == 1
            assert f"the group {deployment.prefix} has no offsets in {topic}" in done.stderr
            assert f"headwater positions accept {topic}" in done.stderr
            assert "Traceback" not in done.stderr
        assert len(sink) == 20
        # The seen table knows how far ingest was read; of raw nobody knows.
        assert headwater("positions", "accept", topics.ingest, **deployment.environment).returncode == 0
        asked = headwater("positions", "accept", topics.raw, **deployment.environment)
        assert (asked.returncode, "--at end" in asked.stderr) == (2, True)
        assert headwater("positions", "accept", topics.raw, "--at", "end", **deployment.environment).returncode == 0
        with deployment.workers("deduplicate", "transform"):
            produce(deployment, *map(change, range(15, 30)))
            until(lambda: len(sink) == 30, "10 more changes, and none twice")
