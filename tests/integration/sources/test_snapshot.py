"""Snapshots beside their streams: a simulator, Apache Kafka, workers that are killed; the command; what is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import Headwater
from mypy_boto3_dynamodb import DynamoDBClient
from support.raw_reader import goes_back, replay
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.simulator import exports as simulated
from headwater.lab.simulator.faults import ApiError
from headwater.lab.simulator.server import Running, SimulatorOptions
from headwater.lab.simulator.world import World, WorldPlan
from headwater.lab.stack import AWS_URL, Endpoints
from headwater.lab.workers import Workers
from pipeline.operate import snapshots as snapshotting
from pipeline.settings.root import Settings
from pipeline.sources.snapshots import s3_export
from pipeline.sources.snapshots.known import Export, Segment, Snapshot
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics

pytestmark = pytest.mark.kafka
TABLE = "orders"
PLAN = WorldPlan(tables=(TABLE,), items=400, shards=2, reshape_every=700, large_every=0, late=0)


@dataclass
class Deployment:
    """Workers that ingest and deduplicate one table."""

    endpoints: Endpoints
    directory: Path
    aws: str
    table: str = TABLE
    count: int = 1
    source: dict[str, Any] = field(default_factory=dict)
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        ensure(admin(self.conf), self.topics.all(), 1)

    @property
    def conf(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.endpoints.bootstrap_servers}

    @property
    def settings(self) -> Settings:
        kafka = {"bootstrap_servers": self.endpoints.bootstrap_servers}
        return Settings.model_validate({"prefix": self.prefix, "partitions": 2, "kafka": kafka})

    @property
    def topics(self) -> Topics:
        return Topics(self.settings)

    @property
    def environment(self) -> dict[str, str]:
        source = {"tables": [self.table], "discovery_interval": 0.5, "poll_interval": 0.05, "snapshot_settle": 0.2}
        surroundings = self.endpoints.environment()
        return {
            **surroundings,
            **{name: self.aws for name in surroundings if name.startswith(AWS_URL)},
            "HEADWATER_PREFIX": self.prefix,
            "HEADWATER_PARTITIONS": "2",
            "HEADWATER_AGENTS": '["ingest", "deduplicate"]',
            "HEADWATER_SOURCES": json.dumps([{**source, **self.source}]),
            "HEADWATER_KAFKA__SESSION_TIMEOUT": "6",
        }

    @contextmanager
    def workers(self, **more: str) -> Iterator[Workers]:
        workers = Workers(self.count, self.directory, {**self.environment, **more})
        workers.start()
        try:
            yield workers
        finally:
            workers.stop()

    def states(self) -> list[str]:
        """Return what became of the snapshots, in the order in which they were asked for."""
        found = snapshotting.of(self.settings).all.values()
        return [one.state for one in sorted(found, key=lambda one: one.asked)]


def pairs(raw: Recorder) -> list[tuple[bytes, bytes]]:
    return [(record.key() or b"", record.value() or b"") for record in raw]


def truth(world: World) -> dict[str, int]:
    return {f"item-{number}": version for number, version in world.items(TABLE)}


def steps(count: int) -> Callable[[World], None]:
    """Return what makes so many changes."""

    def make(world: World) -> None:
        for _ in range(count):
            world.step()

    return make


def long_ago(world: World) -> None:
    """Change items so long ago that the streams have forgotten it."""
    steps(1_500)(world)
    stream = world.tables[TABLE].stream
    for shard in list(stream.shards.values()):
        stream.trim(shard, len(shard.records))


def test_the_first_snapshot_survives_kills_and_raw_replayed_is_the_table(stack: Endpoints, tmp_path: Path) -> None:
    with Running(SimulatorOptions(plan=PLAN, rate=0)) as world:
        world.do(long_ago)
        source = {"snapshot": "initial", "snapshot_units": 8}
        deployment = Deployment(stack, tmp_path, world.address, count=2, source=source)
        with Recorder(deployment.conf, deployment.topics.raw) as raw:

            def rows() -> int:
                return sum(b'"READ"' in value for _, value in pairs(raw))

            with deployment.workers() as workers:
                for number, kill in ((30, 0), (90, 1), (150, 0)):
                    until(lambda number=number: rows() >= number, f"{number} rows")  # type: ignore[misc]
                    world.do(steps(150))
                    workers.kill(kill)
                    until(lambda kill=kill: not workers.all[kill].alive(), "its death")  # type: ignore[misc]
                    workers.watch()
                until(lambda: deployment.states() == ["done"], "the end of the snapshot")
                world.do(steps(100))
                world.do(World.settle)
                until(lambda: replay(pairs(raw)) == world.do(truth), "what the table has")
            found = pairs(raw)
            assert goes_back(found) == []
            ids = [json.loads(value)["eventID"] for _, value in found]
            assert len(ids) == len(set(ids))
            assert rows() < len(world.do(truth)), "rows that the stream was ahead of are left out"
            scans = world.simulator.calls["Scan"]
        with deployment.workers(), Recorder(deployment.conf, deployment.topics.raw) as raw:
            world.do(steps(50))
            until(lambda: len(raw) >= len(found) + 50, "more changes")
            assert deployment.states() == ["done"]
            assert world.simulator.calls["Scan"] == scans, "it is taken once"


def test_the_command_forecasts_takes_shows_and_cancels(stack: Endpoints, tmp_path: Path, headwater: Headwater) -> None:
    with Running(SimulatorOptions(plan=PLAN, rate=0)) as world:
        world.do(long_ago)
        deployment = Deployment(stack, tmp_path / "workers", world.address)
        environment = deployment.environment
        outlook = json.loads(headwater("snapshot", TABLE, "--forecast", "--json", **environment).stdout)
        assert outlook[0]["rows"] == len(world.do(truth))
        assert outlook[0]["units"] > 0
        with deployment.workers(), Recorder(deployment.conf, deployment.topics.raw) as raw:
            taken = headwater("snapshot", TABLE, "--segments", "3", "--json", **environment)
            assert taken.returncode == 0, taken.stderr
            (report,) = json.loads(taken.stdout)
            assert (report["state"], report["rows"]) == ("done", len(world.do(truth)))
            until(lambda: replay(pairs(raw)) == world.do(truth), "all items")

            detached = headwater("snapshot", TABLE, "--units", "0.1", "--detach", **environment)
            assert detached.returncode == 0, detached.stderr
            until(lambda: deployment.states() == ["done", "running"], "the second")
            cancelled = headwater("snapshot", TABLE, "--cancel", **environment)
            assert cancelled.returncode == 0, cancelled.stderr
            until(lambda: deployment.states() == ["done", "cancelled"], "its end")
            shown = json.loads(headwater("status", "--json", **environment).stdout)["snapshots"]
            assert [one["state"] for one in shown] == ["done", "cancelled"]


def a_bucket(stack: Endpoints, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a bucket, and let this process, in which the simulator writes exports as AWS would, use it."""
    for name, value in stack.environment().items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    bucket = f"exports-{uuid.uuid4().hex[:8]}"
    client = boto3.client("s3", endpoint_url=stack.s3_endpoint_url)
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return bucket


@pytest.mark.parametrize("restarts", [False, True])
def test_an_export_is_read_page_by_page_from_any_position(
    restarts: bool, stack: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = a_bucket(stack, monkeypatch)
    monkeypatch.setattr(s3_export, "LINES", 40)
    world = World(PLAN)
    long_ago(world)
    client = boto3.client("s3", endpoint_url=stack.s3_endpoint_url)
    for key, body in simulated.SimulatedExports(world, "").objects(TABLE, "there"):
        client.put_object(Bucket=bucket, Key=key, Body=body)
    snapshot = Snapshot(TABLE, "s1", 3, export=f"s3://{bucket}/there")
    export = Export("arn", "there/manifest-files.json", 7.0)
    exports, found = s3_export.Exports(None, 1), []
    for number in range(3):
        at = Segment()
        while not at.finished:
            page = exports.page(snapshot, export, number, at, ("id",))
            found += [(record["key"], record["value"]) for record in page.cut.records]
            at = page.segment
            if restarts:
                exports = s3_export.Exports(None, 1)
    assert len(found) == len(truth(world))
    assert replay(found) == truth(world)
    assert {json.loads(value)["dynamodb"]["ApproximateCreationDateTime"] for _, value in found} == {7}


def test_an_export_to_s3_is_read_instead_of_a_scan(
    stack: Endpoints, tmp_path: Path, headwater: Headwater, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = a_bucket(stack, monkeypatch)
    with Running(SimulatorOptions(plan=PLAN, rate=0, s3_endpoint=stack.s3_endpoint_url)) as world:
        world.do(long_ago)
        deployment = Deployment(stack, tmp_path / "workers", world.address)
        environment = {**deployment.environment, "AWS_ENDPOINT_URL_S3": stack.s3_endpoint_url}
        with (
            deployment.workers(AWS_ENDPOINT_URL_S3=stack.s3_endpoint_url) as workers,
            Recorder(deployment.conf, deployment.topics.raw) as raw,
        ):
            arguments = ("snapshot", TABLE, "--export", f"s3://{bucket}/some/where/", "--segments", "2")
            detached = headwater(*arguments, "--detach", **environment)
            assert detached.returncode == 0, detached.stderr
            until(lambda: deployment.states() == ["running"], "its beginning")
            world.do(steps(100))
            workers.kill(0)
            until(lambda: not workers.all[0].alive(), "its death")
            workers.watch()
            until(lambda: deployment.states() == ["done"], "its end")
            world.do(steps(20))
            until(lambda: replay(pairs(raw)) == world.do(truth), "what the table has")
            assert goes_back(pairs(raw)) == []
            assert any(b'"READ"' in value for _, value in pairs(raw))
        assert world.simulator.calls["Scan"] == 0


def test_a_snapshot_that_cannot_continue_fails_and_says_why(
    stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    with Running(SimulatorOptions(plan=PLAN, rate=0)) as world:
        world.do(long_ago)
        deployment = Deployment(stack, tmp_path / "workers", world.address)
        answers = world.simulator.answers
        target = "DynamoDB_20120810.Scan"
        answers[target], scan = lambda request: _gone(), answers[target]
        with deployment.workers():
            failed = headwater("snapshot", TABLE, "--json", **deployment.environment)
            assert failed.returncode == 1
            assert "the table orders (segment 0) does not exist" in failed.stderr
            assert json.loads(failed.stdout)[0]["state"] == "failed"
            answers[target] = scan
            again = headwater("snapshot", TABLE, "--json", **deployment.environment)
            assert again.returncode == 0, again.stderr
        assert deployment.states() == ["failed", "done"]


def _gone() -> bytes:
    raise ApiError("ResourceNotFoundException", "Requested resource not found: Table: orders not found")


def test_a_gap_is_repaired_by_reading_all_items_again(stack: Endpoints, tmp_path: Path, headwater: Headwater) -> None:
    with Running(SimulatorOptions(plan=PLAN, rate=0)) as world:
        deployment = Deployment(stack, tmp_path / "workers", world.address)
        environment = deployment.environment
        with Recorder(deployment.conf, deployment.topics.raw) as raw:
            world.do(steps(200))
            with deployment.workers():
                until(lambda: len(raw) == 200, "the changes")
            world.do(steps(200))

            def trim(world: World) -> None:
                stream = world.tables[TABLE].stream
                for shard in list(stream.shards.values()):
                    stream.trim(shard, len(shard.records))

            world.do(trim)
            world.do(steps(20))
            with deployment.workers():
                until(lambda: headwater("gaps", **environment).returncode == 1, "the gap")
                repaired = headwater("gaps", "repair", **environment)
                assert repaired.returncode == 0, repaired.stderr
                assert "deleted within a gap" in repaired.stderr
                listed = headwater("gaps", "--json", **environment)
                assert listed.returncode == 0, listed.stderr
                assert all(gap["repaired"] for gap in json.loads(listed.stdout))
                # All that the table has is right; items deleted in the gap are what nobody can know.
                until(lambda: replay(pairs(raw)).items() >= world.do(truth).items(), "the items of the gap")


@pytest.mark.parametrize("view", ["KEYS_ONLY", "OLD_IMAGE"])
def test_a_stream_without_new_images_is_refused(
    view: Any, stack: Endpoints, tmp_path: Path, headwater: Headwater, dynamodb: DynamoDBClient
) -> None:
    table = f"snapshot-{view}"
    dynamodb.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": view},
    )
    deployment = Deployment(stack, tmp_path, stack.aws_endpoint_url, table)
    refused = headwater("snapshot", table, **deployment.environment)
    assert refused.returncode == 1
    assert f"is {view}: it does not say what an item becomes" in refused.stderr
    assert "NEW_AND_OLD_IMAGES" in refused.stderr
    if view == "OLD_IMAGE":  # which can be captured
        deployment.source = {"snapshot": "initial"}
        checked = headwater("check", **deployment.environment)
        assert "it does not say what an item becomes" in checked.stdout
        started = headwater("run", "ingest", **deployment.environment)
        assert started.returncode == 1
        assert "it does not say what an item becomes" in started.stderr


def test_items_of_every_shape_come_out_as_they_are(
    stack: Endpoints, tmp_path: Path, headwater: Headwater, dynamodb: DynamoDBClient
) -> None:
    table = f"snapshot-{uuid.uuid4().hex[:6]}"
    dynamodb.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}, {"AttributeName": "at", "KeyType": "RANGE"}],
        AttributeDefinitions=[
            {"AttributeName": "id", "AttributeType": "B"},
            {"AttributeName": "at", "AttributeType": "N"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    item: dict[str, Any] = {
        "id": {"B": b"\x00\xff"},
        "at": {"N": "12345678901234567890.5"},
        "text": {"S": 'quoted " \\ ünï'},
        "many": {"M": {"list": {"L": [{"N": "1"}, {"BOOL": True}, {"NULL": True}]}, "set": {"SS": ["a"]}}},
    }
    dynamodb.put_item(TableName=table, Item=item)  # before there is a stream
    stream: Any = {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"}
    dynamodb.update_table(TableName=table, StreamSpecification=stream)
    deployment = Deployment(stack, tmp_path / "workers", stack.aws_endpoint_url, table)
    with deployment.workers(), Recorder(deployment.conf, deployment.topics.raw) as raw:
        taken = headwater("snapshot", table, **deployment.environment)
        assert taken.returncode == 0, taken.stderr
        until(lambda: len(raw) == 1, "the row")
    ((key, value),) = pairs(raw)
    assert key == b'{"at":{"N":"12345678901234567890.5"},"id":{"B":"AP8="}}'
    change = json.loads(value)
    assert (change["eventName"], change["tableName"]) == ("READ", table)
    assert change["dynamodb"]["Keys"] == {"id": {"B": "AP8="}, "at": item["at"]}
    assert change["dynamodb"]["NewImage"] == {**item, "id": {"B": "AP8="}}


def test_a_table_that_nobody_captures_is_not_a_table_for_a_snapshot(headwater: Headwater) -> None:
    refused = headwater("snapshot", "unknown", HEADWATER_SOURCES='[{"tables": ["orders"]}]')
    assert refused.returncode == 2
    assert "no source of kind dynamodb-stream captures the table unknown" in refused.stderr
