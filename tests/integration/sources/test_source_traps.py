"""What the readers of streams before us fell over, one test a trap: a simulator, Apache Kafka, a worker."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from conftest import Headwater
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.simulator.dynamodb import THROTTLED
from headwater.lab.simulator.faults import ApiError, Rates
from headwater.lab.simulator.history import SimulatedStream
from headwater.lab.simulator.server import Running, SimulatorOptions
from headwater.lab.simulator.world import World, WorldPlan
from headwater.lab.stack import AWS_URL, Endpoints
from headwater.lab.workers import Workers
from pipeline.settings.root import Settings
from pipeline.sources.shard_positions import ShardOf
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics

pytestmark = pytest.mark.kafka
TABLE = "orders"


def fill(deployment: Deployment, partitions: set[int], count: int) -> None:
    """Write so many records into partitions of the shards topic that are of no use to the worker."""
    producer = Producer(deployment.conf | {"linger.ms": 5, "queue.buffering.max.messages": 1_000_000})
    for partition in partitions:
        producer.produce_batch(deployment.topics.shards, [{"key": b"other/", "value": b"{}"}] * count, partition)
    assert producer.flush(60) == 0


@dataclass
class Deployment:
    """A world that changes only on demand, and one worker that ingests it."""

    endpoints: Endpoints
    directory: Path
    world: Running
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")
    tables: tuple[str, ...] = (TABLE,)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def topics(self) -> Topics:
        return Topics(Settings.model_validate({"prefix": self.prefix, "partitions": 1}))

    @property
    def conf(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.endpoints.bootstrap_servers}

    def environment(self) -> dict[str, str]:
        captured = {} if "streams" in self.more else {"tables": self.tables}
        source = {**captured, "discovery_interval": 0.5, "poll_interval": 0.05, **self.more}
        surroundings = self.endpoints.environment()
        return {
            **surroundings,
            **{name: self.world.address for name in surroundings if name.startswith(AWS_URL)},
            "HEADWATER_PREFIX": self.prefix,
            "HEADWATER_PARTITIONS": "1",
            "HEADWATER_AGENTS": '["ingest"]',
            "HEADWATER_SOURCES": json.dumps([source]),
            "HEADWATER_KAFKA__SESSION_TIMEOUT": "6",
        }

    @contextmanager
    def worker(self) -> Iterator[Workers]:
        workers = Workers(1, self.directory, self.environment())
        workers.start()
        try:
            yield workers
        finally:
            workers.stop()

    @property
    def log(self) -> str:
        return (self.directory / "worker-1.log").read_text(errors="replace")

    @contextmanager
    def ingested(self) -> Iterator[Callable[[], list[str]]]:
        """Yield a function that returns the event IDs on the ingest topic, in their order."""
        with Recorder(self.conf, self.topics.ingest) as records:
            yield lambda: [json.loads(record.value() or b"")["eventID"] for record in records]

    @contextmanager
    def gaps(self) -> Iterator[Callable[[], list[dict[str, Any]]]]:
        """Yield a function that returns the gaps."""
        with Recorder(self.conf, self.topics.gaps) as records:
            yield lambda: [json.loads(record.value() or b"") for record in records]

    def change(self, count: int) -> None:
        """Make changes."""

        def make(world: World) -> None:
            for _ in range(count):
                world.step()

        self.world.do(make)

    def shape(self, what: Callable[[SimulatedStream], object]) -> None:
        """Change the newest stream of the table."""
        self.world.do(lambda world: what(world.tables[TABLE].stream))

    @property
    def truth(self) -> list[str]:
        """The event IDs of all changes that the streams had, in the order of the items."""
        return self.world.do(
            lambda world: [one for table in world.tables.values() for ids in table.changes.values() for one in ids]
        )

    def calls(self, name: str) -> int:
        return self.world.simulator.calls[name]


QUIET = WorldPlan(tables=(TABLE,), items=20, shards=1, reshape_every=0, large_every=0, late=0)


@contextmanager
def deployed(stack: Endpoints, directory: Path, plan: WorldPlan = QUIET, **options: Any) -> Iterator[Deployment]:
    with Running(SimulatorOptions(plan=plan, rate=0, **options)) as world:
        found = Deployment(stack, directory, world)
        ensure(admin(found.conf), found.topics.all(), 1)
        yield found


@pytest.fixture
def deployment(stack: Endpoints, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(stack, tmp_path) as found:
        yield found


def roll(stream: SimulatedStream) -> None:
    """Close every open shard; each gets a child, listed at once."""
    for shard in list(stream.open):
        stream.roll(shard)
    for shard in stream.open:
        shard.listed = True


def test_trap_1_the_last_answer_of_a_shard_has_records_and_no_iterator(deployment: Deployment) -> None:
    deployment.change(30)
    deployment.shape(roll)
    deployment.change(5)
    with deployment.ingested() as found, deployment.worker():
        until(lambda: len(found()) >= 35, "the changes of both shards")
        assert sorted(found()) == sorted(deployment.truth)


def test_trap_2_latest_counts_only_when_a_stream_is_first_found(stack: Endpoints, tmp_path: Path) -> None:
    with deployed(stack, tmp_path) as deployment:
        clock = [1_000_000.0]
        deployment.world.do(lambda world: setattr(world, "clock", lambda: clock[0]))
        deployment.change(30)  # long ago: not wanted
        old = set(deployment.truth)
        deployment.world.do(lambda world: setattr(world, "clock", lambda: 4_000_000_000.0))
        deployment.more = {"start": "latest"}
        with deployment.ingested() as found:
            with deployment.worker():
                until(lambda: deployment.calls("GetRecords") > 0, "a reader")
                deployment.change(10)
                deployment.shape(roll)
                deployment.change(10)
                until(lambda: len(found()) >= 20, "what came since, of both shards")
            deployment.change(10)  # while nobody reads
            deployment.shape(roll)
            deployment.change(10)
            with deployment.worker():
                until(lambda: len(found()) >= 40, "what came meanwhile")
            assert sorted(found()) == sorted(set(deployment.truth) - old)


def test_trap_3_4_and_8_a_long_lineage_over_many_pages_is_read_parents_first(deployment: Deployment) -> None:
    for _ in range(25):  # a page has 10 shards
        deployment.change(4)
        deployment.shape(roll)
    deployment.change(1)
    with deployment.ingested() as found, deployment.worker():
        until(lambda: len(found()) >= 101, "the changes of 26 shards")
        order = found()
    assert sorted(order) == sorted(deployment.truth)
    items = deployment.world.do(lambda world: list(world.tables[TABLE].changes.values()))
    for ids in items:
        assert [one for one in order if one in set(ids)] == ids


def test_trap_5_an_iterator_that_expires_before_the_first_record_is_recreated(stack: Endpoints, tmp_path: Path) -> None:
    with deployed(stack, tmp_path, iterator_seconds=0.02) as deployment, deployment.ingested() as found:
        with deployment.worker():
            until(lambda: deployment.calls("GetShardIterator") > 3, "iterators that expire")
            deployment.change(10)
            until(lambda: len(found()) >= 10, "the changes")
        assert sorted(found()) == sorted(deployment.truth)


def test_trap_6_a_shard_that_vanishes_ends_and_is_a_gap(deployment: Deployment) -> None:
    deployment.change(10)
    with deployment.ingested() as found, deployment.gaps() as gaps:
        with deployment.worker():
            until(lambda: len(found()) >= 10, "the first changes")
        deployment.change(10)

        def lose(stream: SimulatedStream) -> None:
            (shard,) = stream.open
            roll(stream)
            stream.trim(shard, len(shard.records))

        deployment.shape(lose)
        deployment.change(10)
        with deployment.worker():
            until(lambda: len(found()) >= 20, "the changes of its child")
            until(lambda: len(gaps()) >= 1, "the gap")
        assert [gap["cause"] for gap in gaps()] == ["vanished"]
        assert gaps()[0]["after"] is not None


def test_trap_7_and_10_one_bad_table_and_one_bad_record_stop_nothing(stack: Endpoints, tmp_path: Path) -> None:
    plan = WorldPlan(tables=(TABLE, "customers"), items=20, shards=1, reshape_every=0, large_every=0, late=0)
    with deployed(stack, tmp_path, plan) as deployment:
        deployment.tables = ("cust*", "ord*")
        deployment.change(20)
        broken = b'{"eventID":"x","dynamodb":{"SequenceNumber":"%d"}}'
        deployment.shape(lambda stream: stream.put(0, "x", lambda sequence: broken % sequence))
        with (
            deployment.ingested() as found,
            Recorder(deployment.conf, deployment.topics.dead_letter) as dead,
            deployment.worker(),
        ):
            until(lambda: len(found()) >= 20 and len(dead) >= 1, "the changes, and the letter")
            deployment.world.do(lambda world: world.drop("customers"))
            deployment.change(15)
            until(lambda: len(found()) >= 35, "the changes of the table that is left")
            (letter,) = list(dead)
            assert (letter.value() or b"").startswith(b'{"eventID":"x"')


def test_trap_11_a_stream_that_was_off_is_a_gap_and_comes_after_the_former_one(
    deployment: Deployment, headwater: Headwater
) -> None:
    deployment.change(20)

    def renew(world: World) -> None:
        table = world.tables[TABLE]
        for shard in list(table.stream.open):
            table.stream.close(shard)
        table.off = 3

    with deployment.ingested() as found, deployment.gaps() as gaps, deployment.worker():
        until(lambda: len(found()) >= 20, "the first changes")
        deployment.change(5)
        deployment.world.do(renew)
        deployment.change(3 + 20)
        until(lambda: len(found()) >= 45 and len(gaps()) >= 1, "the changes of both streams, and the gap")
        order = found()
        assert [(gap["cause"], gap["shard"]) for gap in gaps()] == [("new stream", "")]
        told = headwater("gaps", "--json", **deployment.environment())
        assert (told.returncode, json.loads(told.stdout)) == (1, [{**gap, "repaired": False} for gap in gaps()])
        assert "incomplete" in headwater("status", **deployment.environment()).stdout
    items = deployment.world.do(lambda world: list(world.tables[TABLE].changes.values()))
    assert sorted(order) == sorted(one for ids in items for one in ids)
    for ids in items:
        assert [one for one in order if one in set(ids)] == ids


def test_trap_11_a_worker_that_has_just_started_reads_the_former_stream_first(stack: Endpoints, tmp_path: Path) -> None:
    with deployed(stack, tmp_path) as deployment, deployment.ingested() as found:
        # What it has to read before it knows of the former stream: by then its first look at the table is over.
        former = deployment.world.do(lambda world: world.tables[TABLE].stream)
        fill(deployment, {ShardOf(TABLE, former.arn, one).partition for one in ("", *former.shards)}, 150_000)
        deployment.change(20)
        with deployment.worker():
            until(lambda: len(found()) >= 20, "the first changes")

        def renew(world: World) -> None:
            world.tables[TABLE].off = 1
            for shard in list(world.tables[TABLE].stream.open):
                world.tables[TABLE].stream.close(shard)

        deployment.change(200)
        deployment.world.do(renew)
        deployment.change(1 + 200)
        deployment.more = {"discovery_interval": 30}
        with deployment.worker():
            until(lambda: len(found()) >= 420, "the changes of both streams")
        order = found()
        for ids in deployment.world.do(lambda world: list(world.tables[TABLE].changes.values())):
            assert [one for one in order if one in set(ids)] == ids


@pytest.mark.parametrize("unread", ["begun", "never begun"])
def test_trap_12_what_is_trimmed_before_it_was_read_is_a_gap(deployment: Deployment, unread: str) -> None:
    deployment.change(10)
    with deployment.ingested() as found, deployment.gaps() as gaps:
        with deployment.worker():
            until(lambda: len(found()) >= 10, "the first changes")
        if unread == "never begun":
            deployment.shape(roll)
        deployment.change(10)
        deployment.shape(lambda stream: stream.trim(stream.open[0], len(stream.open[0].records) - 4))
        with deployment.worker():
            until(lambda: len(found()) >= 14 and len(gaps()) >= 1, "what is left, and the gap")
        (gap,) = gaps()
    assert (gap["cause"], gap["table"]) == ("trimmed", TABLE)
    assert (gap["after"] is None) == (unread == "never begun")
    first = deployment.world.do(lambda world: world.tables[TABLE].stream.open[0].records[0].sequence)
    assert gap["before"] == str(first)


@pytest.mark.parametrize("restarted", [False, True])
def test_trap_6_shards_that_were_never_begun_when_their_stream_vanished_are_gaps_too(
    restarted: bool, deployment: Deployment
) -> None:
    deployment.change(10)
    if not restarted:  # a parent that is being read, and a child that waits for it
        deployment.shape(roll)
        deployment.change(10)
    answers, name = deployment.world.simulator.answers, "DynamoDBStreams_20120810.GetRecords"

    def throttled(request: dict[str, object]) -> bytes:
        raise ApiError(THROTTLED, "Rate exceeded for shard")

    answer, answers[name] = answers[name], throttled
    wanted = {
        shard.shard_id for shard in deployment.world.do(lambda world: list(world.tables[TABLE].stream.shards.values()))
    }
    with deployment.gaps() as gaps, Recorder(deployment.conf, deployment.topics.shards) as shards:
        with deployment.worker():
            until(lambda: len(shards) >= 1, "the beginning of the stream")
            until(lambda: deployment.calls("GetRecords") > 3, "a reader that is refused")
            if not restarted:
                deployment.world.do(lambda world: world.drop(TABLE))
                answers[name] = answer
                until(lambda: {gap["shard"] for gap in gaps()} == wanted, "the gaps")
        if restarted:
            deployment.world.do(lambda world: world.drop(TABLE))
            deployment.tables = ("ord*",)  # its preflight would miss a table that is named
            with deployment.worker():
                until(lambda: {gap["shard"] for gap in gaps()} == wanted, "the gaps")
        assert {gap["cause"] for gap in gaps()} == {"vanished"}
        assert len(gaps()) == len(wanted)


def test_trap_6_one_answer_that_a_listed_shard_does_not_exist_does_not_end_it(deployment: Deployment) -> None:
    answers, wrong = deployment.world.simulator.answers, {"GetRecords": 0, "GetShardIterator": 0, "DescribeStream": 0}

    def lying(name: str) -> None:
        right = answers[f"DynamoDBStreams_20120810.{name}"]

        def answer(request: dict[str, Any]) -> bytes:
            if wrong[name]:
                wrong[name] -= 1
                raise ApiError("ResourceNotFoundException", "Requested resource not found")
            return right(request)

        answers[f"DynamoDBStreams_20120810.{name}"] = answer

    for name in wrong:
        lying(name)
    with deployment.ingested() as found, deployment.gaps() as gaps:
        with deployment.worker():
            deployment.change(10)
            until(lambda: len(found()) >= 10, "the first changes")
            wrong |= {"GetRecords": 1, "GetShardIterator": 1, "DescribeStream": 1}
            until(lambda: not any(wrong.values()), "an answer of each call")
            deployment.change(10)
            until(lambda: len(found()) >= 20, "the changes since")
        with deployment.worker():
            deployment.change(10)
            until(lambda: len(found()) >= 30, "the changes after a restart")
        assert gaps() == []
    assert sorted(found()) == sorted(deployment.truth)


def test_trap_4_a_grandchild_that_is_listed_before_its_parent_waits_for_it(deployment: Deployment) -> None:
    answers, name = deployment.world.simulator.answers, "DynamoDBStreams_20120810.DescribeStream"
    describe, hidden = answers[name], list[Any]()

    def late(request: dict[str, Any]) -> bytes:
        answer = describe(request)
        if hidden:
            hidden.pop().listed = True  # from the next answer on
        return answer

    answers[name] = late
    with deployment.ingested() as found, deployment.gaps() as gaps, deployment.worker():
        deployment.change(10)
        until(lambda: len(found()) >= 10, "the first changes")

        def grow(world: World) -> None:
            stream = world.tables[TABLE].stream
            stream.roll(stream.open[0])
            (parent,) = stream.open
            for _ in range(10):
                world.step()
            stream.roll(parent)
            stream.open[0].listed = True
            hidden.append(parent)
            for _ in range(10):
                world.step()

        deployment.world.do(grow)
        until(lambda: len(found()) >= 30, "the changes of both")
        order = found()
        assert gaps() == []
    assert sorted(order) == sorted(deployment.truth)
    for ids in deployment.world.do(lambda world: list(world.tables[TABLE].changes.values())):
        assert [one for one in order if one in set(ids)] == ids


def test_trap_10_a_table_without_a_stream_that_a_pattern_finds_keeps_no_worker_from_starting(
    stack: Endpoints, tmp_path: Path
) -> None:
    plan = WorldPlan(tables=(TABLE, "orders-old"), items=20, shards=1, reshape_every=0, large_every=0, late=0)
    with deployed(stack, tmp_path, plan) as deployment, deployment.ingested() as found:
        deployment.tables = ("ord*",)
        deployment.world.do(lambda world: setattr(world.tables["orders-old"], "off", 1_000_000))
        with deployment.worker():
            deployment.change(20)
            until(lambda: len(found()) >= 1, "changes of the other table")
            until(lambda: "the table orders-old has no stream" in deployment.log, "the word of the one that has none")
            assert "aws dynamodb update-table --table-name orders-old" in deployment.log
            assert deployment.log.count("the table orders-old has no stream") == 1


def test_tables_that_are_named_keep_a_worker_from_starting_and_all_that_is_wrong_is_said_at_once(
    deployment: Deployment, headwater: Headwater
) -> None:
    deployment.tables = ("gone", TABLE, "gone-too")
    told = headwater("run", **deployment.environment())
    assert told.returncode == 1
    (line,) = [line for line in told.stderr.splitlines() if "headwater:" in line]
    assert "the table gone does not exist" in line
    assert "the table gone-too does not exist" in line
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("trimmed_before", [0, 3])
def test_trap_12_what_is_trimmed_between_the_first_look_and_the_first_read_is_a_gap(
    deployment: Deployment, trimmed_before: int
) -> None:
    deployment.change(10)
    deployment.shape(lambda stream: stream.trim(stream.open[0], trimmed_before))
    answers, name = deployment.world.simulator.answers, "DynamoDBStreams_20120810.GetRecords"
    answer, looks = answers[name], 1 if trimmed_before else 0  # a whole shard is known without a look into it

    def throttled(request: dict[str, object]) -> bytes:
        if deployment.calls("GetRecords") > looks:
            raise ApiError(THROTTLED, "Rate exceeded for shard")
        return answer(request)

    answers[name] = throttled
    with deployment.ingested() as found, deployment.gaps() as gaps:
        with Recorder(deployment.conf, deployment.topics.shards) as shards, deployment.worker():
            until(lambda: len(shards) >= 1, "the beginning of the stream")
        deployment.shape(lambda stream: stream.trim(stream.open[0], 4))
        answers[name] = answer
        with deployment.worker():
            until(lambda: len(found()) >= 6 - trimmed_before and len(gaps()) >= 1, "what is left, and the gap")
        (gap,) = gaps()
    assert (gap["cause"], gap["table"], gap["after"]) == ("trimmed", TABLE, None)
    first = deployment.world.do(lambda world: world.tables[TABLE].stream.open[0].records[0].sequence)
    assert gap["before"] == str(first)


def test_what_was_trimmed_before_the_first_look_is_not_a_gap(deployment: Deployment) -> None:
    deployment.change(10)
    deployment.shape(lambda stream: stream.trim(stream.open[0], 4))
    with deployment.ingested() as found, deployment.gaps() as gaps, deployment.worker():
        until(lambda: len(found()) >= 6, "what is left")
        deployment.shape(roll)
        deployment.change(5)
        until(lambda: len(found()) >= 11, "what came since")
        assert gaps() == []


def test_trap_2_and_12_a_child_is_wanted_whole_although_only_the_latest_was_at_first(
    stack: Endpoints, tmp_path: Path
) -> None:
    with deployed(stack, tmp_path) as deployment, deployment.ingested() as found, deployment.gaps() as gaps:
        deployment.more = {"start": "latest"}
        with deployment.worker():
            until(lambda: deployment.calls("GetRecords") > 0, "a reader")
            deployment.change(10)
            until(lambda: len(found()) >= 10, "the first changes")
        deployment.shape(roll)
        deployment.change(10)
        deployment.shape(lambda stream: stream.trim(stream.open[0], 6))
        with deployment.worker():
            until(lambda: len(found()) >= 14 and len(gaps()) >= 1, "what is left of the child, and the gap")
        assert [(gap["cause"], gap["after"]) for gap in gaps()] == [("trimmed", None)]


def test_trap_15_a_shard_has_one_reader_also_after_many_throttles(stack: Endpoints, tmp_path: Path) -> None:
    rates = Rates(throttle=0.3, error=0.1, timeout=0.05, expire=0.1)
    with deployed(stack, tmp_path, rates=rates) as deployment, deployment.ingested() as found:
        with deployment.worker():
            for number in range(10):
                deployment.change(10)
                deployment.shape(roll)
                until(lambda number=number: len(found()) >= 10 * (number + 1), "the changes")  # type: ignore[misc]
        assert sorted(found()) == sorted(deployment.truth)
        assert "Too many readers" not in deployment.log


@pytest.mark.parametrize("rates", [Rates(throttle=1.0), Rates(token=1.0)], ids=["throttled", "credentials expired"])
def test_a_bad_hour_at_aws_is_said_once_and_nothing_is_lost(deployment: Deployment, rates: Rates) -> None:
    faults = deployment.world.simulator.faults
    with deployment.ingested() as found, deployment.worker():
        deployment.change(10)
        until(lambda: len(found()) >= 10, "the first changes")
        faults.rates = rates
        deployment.change(10)
        until(lambda: "Still trying" in deployment.log, "the word that it still tries")
        calls = deployment.calls("GetRecords")
        until(lambda: deployment.calls("GetRecords") > calls, "another refusal")
        faults.rates = Rates()
        until(lambda: len(found()) >= 20, "the changes made meanwhile")
        assert deployment.log.count("Still trying") == 1
    assert sorted(found()) == sorted(deployment.truth)


def test_finished_lineages_leave_the_shards_topic(deployment: Deployment) -> None:
    with (
        deployment.ingested() as found,
        Recorder(deployment.conf, deployment.topics.shards) as shards,
        deployment.worker(),
    ):
        for number in range(6):
            deployment.change(5)
            deployment.shape(roll)
            until(lambda number=number: len(found()) >= 5 * (number + 1), "the changes")  # type: ignore[misc]

        for number in range(3):
            deployment.shape(trim_oldest)
            until(
                lambda number=number: sum(shard.value() is None for shard in shards) > number,  # type: ignore[misc]
                "the tombstone of a shard",
            )


def trim_oldest(stream: SimulatedStream) -> None:
    oldest = next(iter(stream.shards.values()))
    stream.trim(oldest, len(oldest.records))
