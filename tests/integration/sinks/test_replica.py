"""The replica on Apache Kafka and a stand-in for DynamoDB: workers that are killed, writes that are refused, a table lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import boto3
import pytest
from confluent_kafka import Producer
from conftest import Headwater
from mypy_boto3_dynamodb import DynamoDBClient
from support.throttled_dynamodb import throttling
from support.waiting import until

from headwater.lab import processes
from headwater.lab.recorder import Recorder, lag
from headwater.lab.stack import Endpoints
from headwater.lab.workers import Workers
from models.attributes import from_client
from models.change import decode
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics

pytestmark = pytest.mark.kafka
FLOW = {"name": "all", "to": [{"sink": "all"}]}
State = dict[str, dict[str, Any]]


@dataclass
class Deployment:
    """A captured table, its replica, and workers when they are asked for."""

    endpoints: Endpoints
    directory: Path
    dynamodb: DynamoDBClient
    replica: Mapping[str, Any] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        ensure(admin(self.conf), self.topics.all(), 1)
        make(self.dynamodb, self.name, StreamEnabled=True, StreamViewType="NEW_AND_OLD_IMAGES")
        make(self.dynamodb, self.copy)
        make(self.dynamodb, f"{self.name}.versions", key="item")

    @property
    def copy(self) -> str:
        return f"{self.name}-copy"

    @property
    def conf(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.endpoints.bootstrap_servers}

    @property
    def topics(self) -> Topics:
        return Topics(Settings.model_validate({"prefix": self.name, "partitions": 2, "flows": [FLOW]}))

    @property
    def environment(self) -> dict[str, str]:
        source = {"tables": [self.name], "discovery_interval": 0.5, "poll_interval": 0.05}
        return {
            **self.endpoints.environment(),
            "HEADWATER_PREFIX": self.name,
            "HEADWATER_PARTITIONS": "2",
            "HEADWATER_SOURCES": json.dumps([source]),
            "HEADWATER_FLOWS": json.dumps([FLOW]),
            "HEADWATER_REPLICAS": json.dumps([{"sinks": ["all"], "table": "{table}-copy", **self.replica}]),
            "HEADWATER_KAFKA__SESSION_TIMEOUT": "6",
        }

    @contextmanager
    def workers(self, *agents: str, count: int = 1) -> Iterator[Workers]:
        directory = self.directory / "-".join(agents)
        running = Workers(count, directory, {**self.environment, "HEADWATER_AGENTS": json.dumps(agents)})
        running.start()
        try:
            yield running
        finally:
            running.stop()

    @contextmanager
    def capture(self) -> Iterator[Workers]:
        with self.workers("ingest", "deduplicate", "transform") as running:
            yield running

    def state(self, table: str) -> State:
        """What a table holds, without versions."""
        found = {}
        for page in self.dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
            for item in page["Items"]:
                typed = {name: from_client(value) for name, value in item.items() if name != "_headwater"}
                found[typed["id"]["S"]] = typed
        return found

    def is_through(self, sink: Recorder) -> bool:
        """Say whether the replica's group has all of the sink topic."""
        return lag(self.conf, f"{self.name}.replica.replica", {self.topics.sink("all"): sink.ends}) == 0


def make(dynamodb: DynamoDBClient, name: str, key: str = "id", **stream: Any) -> None:
    dynamodb.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        **({"StreamSpecification": stream} if stream else {}),  # type: ignore[arg-type]
    )


def restart(workers: Workers, number: int) -> None:
    """Kill a worker without warning, and start it again."""
    workers.kill(number)
    until(lambda: not workers.all[number].alive(), "the end of a worker")
    workers.watch()


@pytest.fixture
def deploy(stack: Endpoints, tmp_path: Path, dynamodb: DynamoDBClient) -> Callable[..., Deployment]:
    return lambda **replica: Deployment(stack, tmp_path, dynamodb, replica)


def one_write(dynamodb: DynamoDBClient, table: str, draw: random.Random, number: int) -> None:
    key = {"id": {"S": f"k{draw.randrange(60)}"}}
    if draw.random() < 0.25:
        dynamodb.delete_item(TableName=table, Key=key)
    else:
        dynamodb.put_item(TableName=table, Item={**key, "n": {"N": str(number)}, "b": {"B": b"\x00\xff"}})


@contextmanager
def load(deployment: Deployment, seed: int) -> Iterator[Event]:
    """Write to the captured table until the end of the block, or until the event is set."""
    over, draw = Event(), random.Random(seed)  # noqa: S311 - a load

    def write() -> None:
        number = 0
        with suppress(
            deployment.dynamodb.exceptions.ResourceNotFoundException
        ):  # a test may delete the table meanwhile
            while not over.is_set():
                one_write(deployment.dynamodb, deployment.name, draw, number := number + 1)

    thread = Thread(target=write)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()


def folded(topic: Recorder) -> State:
    """The state that the changes of a topic make."""
    found: State = {}
    for record in topic:
        change = decode(record.value() or b"")
        key = json.loads(bytes(change.body.keys))["id"]["S"]
        found.pop(key, None)
        if change.after is not None:
            found[key] = json.loads(change.after)
    return found


@pytest.mark.parametrize("version", ["attribute", "table"])
def test_the_replica_equals_its_source_though_writes_are_refused_and_workers_killed(
    version: str, deploy: Callable[..., Deployment], stack: Endpoints, headwater: Headwater
) -> None:
    with throttling(stack.aws_endpoint_url, share=0.15) as proxy:
        here = deploy(version=version, endpoint_url=proxy.url)
        with Recorder(here.conf, here.topics.sink("all")) as sink, here.capture():
            with here.workers("replica", count=2) as replicas, load(here, seed=1):
                for victim in (0, 1):
                    before = proxy.done["done"]
                    until(lambda before=before: proxy.done["done"] > before + 150, "writes to the replica")  # type: ignore[misc]
                    restart(replicas, victim)
                before = proxy.done["done"]
                until(lambda: proxy.done["done"] > before + 150, "writes to the replica")
            # The worker as users start it, alone with what is left.
            log = here.directory / "run.log"
            command = [sys.executable, "-m", "headwater.cli", "run", "replica", "--without-web"]
            state = {"HEADWATER_STATE_DIR": str(here.directory / "run.state")}
            worker = processes.start(
                "run", command, log=log, address="", environment={**here.environment, **state}, detached=False
            )
            try:
                proxy.share = 0.0
                until(
                    lambda: here.is_through(sink) and folded(sink) == here.state(here.name),
                    "a sink topic with all changes, and offsets at the end",
                )
                assert here.state(here.copy) == here.state(here.name)
                assert worker.alive(), log.read_text()[-3000:]
            finally:
                processes.stop([worker])
        assert {"throttled", "failed", "broken"} <= set(proxy.done)
        verified = headwater("replica", "verify", "--json", **here.environment)
    assert verified.returncode == 0, verified.stderr
    (said,) = json.loads(verified.stdout)
    assert said["items"] == said["replicated"] == len(here.state(here.name)) > 0


def test_when_the_source_table_is_lost_under_load_the_replica_equals_what_raw_says(
    deploy: Callable[..., Deployment], headwater: Headwater
) -> None:
    here = deploy()
    with (
        Recorder(here.conf, here.topics.raw) as raw,
        Recorder(here.conf, here.topics.sink("all")) as sink,
        here.workers("replica") as replicas,
    ):
        with here.capture(), load(here, seed=2) as over:
            until(lambda: len(raw) > 300, "changes")
            over.set()
            here.dynamodb.delete_table(TableName=here.name)
        restart(replicas, 0)  # it begins without the source
        with here.workers("deduplicate", "transform"):  # what was read is carried to its end
            until(lambda: raw.is_at_end(here.conf) and sink.is_at_end(here.conf), "all that was read")
            until(lambda: len(sink) == len(raw) and here.is_through(sink), "all changes in the replica")
        assert here.state(here.copy) == folded(raw) != {}
    gone = headwater("replica", "verify", **here.environment)
    assert gone.returncode == 1
    assert f"the source table {here.name} does not exist" in gone.stderr


def test_verify_finds_what_is_missing_surplus_and_different(
    deploy: Callable[..., Deployment], headwater: Headwater
) -> None:
    here = deploy()
    for number in range(30):
        item: Any = {"id": {"S": f"k{number}"}, "n": {"N": "1.50"}, "s": {"NS": ["1", "2"]}}
        here.dynamodb.put_item(TableName=here.name, Item=item)
        copied = {**item, "s": {"NS": ["2", "1"]}, "_headwater": {"S": "v"}}
        if number != 3:
            here.dynamodb.put_item(TableName=here.copy, Item=copied)
    assert headwater("replica", "verify", **here.environment).returncode == 1
    here.dynamodb.put_item(TableName=here.copy, Item={"id": {"S": "nobody"}})
    here.dynamodb.put_item(TableName=here.copy, Item={"id": {"S": "k5"}, "n": {"N": "2"}})
    found = headwater("replica", "verify", "--segments", "3", "--json", **here.environment)
    assert found.returncode == 1, found.stderr
    (said,) = json.loads(found.stdout)
    assert said["missing"] == {"count": 1, "examples": [{"id": {"S": "k3"}}]}
    assert said["surplus"] == {"count": 1, "examples": [{"id": {"S": "nobody"}}]}
    assert said["different"] == {"count": 1, "examples": [{"id": {"S": "k5"}}]}
    here.dynamodb.put_item(TableName=here.copy, Item={"id": {"S": "k3"}, "n": {"N": "1.5"}, "s": {"NS": ["1", "2"]}})
    here.dynamodb.delete_item(TableName=here.copy, Key={"id": {"S": "nobody"}})
    here.dynamodb.put_item(TableName=here.copy, Item={"id": {"S": "k5"}, "n": {"N": "1.5"}, "s": {"NS": ["1", "2"]}})
    equal = headwater("replica", "verify", **here.environment)
    assert equal.returncode == 0, equal.stderr + equal.stdout


def test_an_item_that_no_table_takes_is_a_dead_letter_and_the_rest_continues(deploy: Callable[..., Deployment]) -> None:
    here = deploy()
    producer = Producer(here.conf)
    for number, text in enumerate(["a", "x" * 500_000, "c"]):
        key = {"id": {"S": f"k{number}"}}
        body = {
            "Keys": key,
            "NewImage": {**key, "t": {"S": text}},
            "ApproximateCreationDateTime": 1,
            "SequenceNumber": "1",
        }
        change = {"eventID": f"e{number}", "eventName": "INSERT", "tableName": here.name, "dynamodb": body}
        producer.produce(here.topics.sink("all"), json.dumps(change).encode(), b"key")
    assert producer.flush(20) == 0
    with Recorder(here.conf, here.topics.dead_letter) as dead, here.workers("replica"):
        until(lambda: set(here.state(here.copy)) == {"k0", "k2"} and len(dead) == 1, "two items and a dead letter")
    (letter,) = dead
    headers: dict[str, Any] = dict(letter.headers() or [])
    assert headers["__connect.errors.stage"] == b"replica"
    assert b"exceeded the maximum allowed size" in headers["__connect.errors.exception.message"]


def test_what_is_missing_or_of_another_shape_is_said_at_start(
    deploy: Callable[..., Deployment], headwater: Headwater
) -> None:
    here = deploy()

    def run(**changed: Any) -> subprocess.CompletedProcess[str]:
        here.replica = changed
        return headwater("run", "replica", "--without-web", **here.environment)

    done = run(table="no-such-table")
    assert done.returncode == 1
    assert "the table no-such-table of the replica does not exist" in done.stderr
    done = run(version_table="no-such-versions")
    assert "create-table --table-name no-such-versions" in done.stderr
    make(here.dynamodb, f"{here.name}-odd", key="other")
    done = run(table="{table}-odd")
    assert "has the key other (HASH, S)" in done.stderr
    done = run(sinks=["nothing"])
    assert done.returncode == 2
    assert "has the sink nothing" in done.stderr


def test_a_role_of_another_account_is_assumed(
    deploy: Callable[..., Deployment], stack: Endpoints, headwater: Headwater
) -> None:
    role = "arn:aws:iam::123456789012:role/replica"
    here = deploy(role_arn=role)
    own: Any = {"endpoint_url": stack.aws_endpoint_url, "region_name": "eu-west-1"}
    mine: Any = {"aws_access_key_id": "headwater", "aws_secret_access_key": "headwater"}
    given = boto3.client("sts", **own, **mine).assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    there = boto3.client(
        "dynamodb",
        **own,
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["SessionToken"],
    )
    make(there, here.copy)
    make(there, f"{here.name}.versions", key="item")
    here.dynamodb.put_item(TableName=here.name, Item={"id": {"S": "k1"}})
    with here.capture(), here.workers("replica"):
        until(lambda: len(there.scan(TableName=here.copy)["Items"]) == 1, "the item in the other account")
    assert here.state(here.copy) == {}
    verified = headwater("replica", "verify", **here.environment)
    assert verified.returncode == 0, verified.stderr
