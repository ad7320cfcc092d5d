"""Capture from Kinesis: a simulator, Apache Kafka, workers. The traps are those that readers before us fell into."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Headwater
from support.waiting import until
from test_source_traps import QUIET, TABLE, Deployment, deployed, roll

from headwater.lab.recorder import Recorder
from headwater.lab.simulator.faults import Rates
from headwater.lab.simulator.history import SimulatedStream
from headwater.lab.simulator.kinesis import CREATED
from headwater.lab.simulator.world import World, delivered, put_record
from headwater.lab.stack import Endpoints
from headwater.lab.workers import Workers
from pipeline.sources.kinesis.kpl import Sub, aggregate

pytestmark = pytest.mark.kafka
CALM = replace(QUIET, kinesis=True, duplicates=0, reordered=0)


@dataclass(frozen=True)
class Change:
    """A change as it is on a topic."""

    key: bytes
    event_id: str
    headers: list[tuple[str, bytes]]


@contextmanager
def reading(deployment: Deployment, topic: str) -> Iterator[Callable[[], list[Change]]]:
    with Recorder(deployment.conf, topic) as records:
        yield lambda: [
            Change(record.key() or b"", json.loads(record.value() or b"")["eventID"], record.headers() or [])  # type: ignore[arg-type]
            for record in records
        ]


@contextmanager
def deduplicating(deployment: Deployment, count: int = 1) -> Iterator[Workers]:
    environment = {**deployment.environment(), "HEADWATER_AGENTS": '["ingest", "deduplicate"]'}
    workers = Workers(count, deployment.directory, environment)
    workers.start()
    try:
        yield workers
    finally:
        workers.stop()


@pytest.fixture
def kinesis(stack: Endpoints, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(stack, tmp_path, CALM) as found:
        found.more = {"kind": "kinesis", "streams": [TABLE]}
        yield found


def in_order(found: list[Change], deployment: Deployment) -> None:
    """Every change once, those of each item in their order."""
    items = deployment.world.do(
        lambda world: [ids for table in world.tables.values() for ids in table.changes.values()]
    )
    order = [change.event_id for change in found]
    assert sorted(order) == sorted(one for ids in items for one in ids)
    for ids in items:
        assert [one for one in order if one in set(ids)] == ids


def list_all(stream: SimulatedStream) -> None:
    for shard in stream.shards.values():
        shard.listed = True


def test_shards_that_split_and_merge_are_read_parents_first_by_fewer_workers(stack: Endpoints, tmp_path: Path) -> None:
    plan = replace(CALM, shards=6, items=60, duplicates=0.2, reordered=0.3, aggregate=3)
    with deployed(stack, tmp_path, plan) as deployment:
        deployment.more = {"kind": "kinesis", "streams": ["ord*"]}

        def reshape(stream: SimulatedStream) -> None:
            stream.split(stream.open[0])
            assert stream.merge(stream.open[2])
            assert stream.merge(stream.open[-2])
            list_all(stream)

        with reading(deployment, deployment.topics.raw) as raw, reading(deployment, deployment.topics.ingest) as ingest:
            with deduplicating(deployment, 2):
                for _ in range(4):
                    deployment.change(60)
                    deployment.world.do(World.settle)
                    deployment.shape(reshape)
                deployment.change(60)
                deployment.world.do(World.settle)
                until(lambda: len(raw()) >= 300, "all changes")
            in_order(raw(), deployment)
            assert len(ingest()) > 300, "duplicates came"
            assert not any(change.headers for change in raw()), "none of them was late"


def test_a_shard_begins_where_another_reader_ended_and_its_parents_are_not_read(kinesis: Deployment) -> None:
    kinesis.change(20)
    kinesis.shape(roll)
    kinesis.change(10)
    shard, last, rest = kinesis.world.do(lambda world: _read_by_another(world.tables[TABLE].stream))
    kinesis.more |= {"start_after": {shard: last}}
    with kinesis.ingested() as found, kinesis.worker():
        until(lambda: len(found()) >= len(rest), "what the other has not read")
        kinesis.change(5)
        until(lambda: len(found()) >= len(rest) + 5, "what came since")
        assert found()[: len(rest)] == rest


def _read_by_another(stream: SimulatedStream) -> tuple[str, str, list[str]]:
    """Return a shard, where in it a reader has ended, and the event IDs behind that."""
    (shard,) = stream.open
    return shard.shard_id, str(shard.records[3].sequence), [record.event_id for record in shard.records[4:]]


def test_trap_2_latest_counts_only_when_a_stream_is_first_found(kinesis: Deployment) -> None:
    kinesis.world.do(lambda world: setattr(world, "clock", lambda: 1_000_000.0))
    kinesis.change(30)  # long ago: not wanted
    old = set(kinesis.truth)
    kinesis.world.do(lambda world: setattr(world, "clock", lambda: 4_000_000_000.0))
    kinesis.more["start"] = "latest"
    with kinesis.ingested() as found:
        with kinesis.worker():
            until(lambda: kinesis.calls("GetRecords") > 0, "a reader")
            kinesis.change(10)
            kinesis.shape(roll)
            kinesis.change(10)
            until(lambda: len(found()) >= 20, "what came since, of both shards")
        kinesis.change(10)  # while nobody reads
        kinesis.shape(roll)
        kinesis.change(10)
        with kinesis.worker():
            until(lambda: len(found()) >= 40, "what came meanwhile")
        assert sorted(found()) == sorted(set(kinesis.truth) - old)


def what_is_trimmed_unread_is_a_gap(deployment: Deployment) -> None:
    deployment.change(10)
    with deployment.ingested() as found, deployment.gaps() as gaps:
        with deployment.worker():
            until(lambda: len(found()) >= 10, "the first changes")
        deployment.change(10)
        deployment.shape(lambda stream: stream.trim(stream.open[0], len(stream.open[0].records) - 4))
        with deployment.worker():
            until(lambda: len(found()) >= 14 and len(gaps()) >= 1, "what is left, and the gap")
        (gap,) = gaps()
    first = deployment.world.do(lambda world: world.tables[TABLE].stream.open[0].records[0].sequence)
    assert (gap["cause"], gap["table"], gap["before"]) == ("trimmed", TABLE, str(first))


def test_trap_12_what_is_trimmed_before_it_was_read_is_a_gap(kinesis: Deployment) -> None:
    what_is_trimmed_unread_is_a_gap(kinesis)


def test_trap_11_a_stream_that_was_recreated_under_its_name_is_a_gap_and_is_read(kinesis: Deployment) -> None:
    kinesis.change(10)
    with kinesis.ingested() as found, kinesis.gaps() as gaps, kinesis.worker():
        until(lambda: len(found()) >= 10, "the first changes")

        def make_anew(world: World) -> None:
            table = world.tables[TABLE]
            table.stream.__init__(table.stream.arn, 1)  # type: ignore[misc]  # as if nothing had been
            kinesis.world.simulator.kinesis.created[TABLE] = CREATED + 100

        kinesis.world.do(make_anew)
        kinesis.change(10)
        until(lambda: len(found()) >= 20, "the changes of the new stream")
        until(lambda: any(gap["cause"] == "new stream" for gap in gaps()), "the gap")
    assert sorted(found()) == sorted(kinesis.truth)


def put(kinesis: Deployment, event_id: str, item: str, at: float) -> None:
    data = delivered(event_id, TABLE, item, 1, 2, at)
    kinesis.shape(lambda stream: put_record(stream, item, event_id, data, at))


def test_trap_14_a_change_that_comes_late_is_marked_and_not_moved(kinesis: Deployment) -> None:
    with reading(kinesis, kinesis.topics.raw) as raw, deduplicating(kinesis):
        came = (("1", "a", 100.5), ("2", "a", 100.3), ("3", "b", 50.0), ("4", "a", 100.5), ("1", "a", 100.5))
        for event_id, item, at in came:
            put(kinesis, event_id, item, at)
        put(kinesis, "5", "a", 100.4)
        until(lambda: len(raw()) >= 5, "the changes")
        assert [(change.event_id, change.headers) for change in raw()] == [
            ("1", []),
            ("2", [("late", b"100500000")]),
            ("3", []),
            ("4", []),
            ("5", [("late", b"100500000")]),
        ]


@pytest.mark.parametrize("read", ["polling", "fan-out"])
def test_a_late_change_is_put_in_order_within_the_window_also_when_the_worker_is_killed_meanwhile(
    kinesis: Deployment, read: str
) -> None:
    kinesis.more |= {"resequence": 4, "read": read}

    def arrive(event_id: str, item: str, at: float) -> None:
        data = delivered(event_id, TABLE, item, 1, 2, at)
        kinesis.shape(lambda stream: put_record(stream, item, event_id, data, time.time()))

    def ids() -> list[str]:
        return [change.event_id for change in raw()]

    with reading(kinesis, kinesis.topics.raw) as raw:
        with deduplicating(kinesis) as workers:
            for event_id, item, at in (("1", "a", 100.5), ("2", "b", 7.0), ("3", "a", 100.3), ("3", "a", 100.3)):
                arrive(event_id, item, at)
            until(lambda: len(ids()) >= 3, "what was held for its time")
            assert ids() == ["3", "1", "2"]
            simulated = kinesis.world.simulator.kinesis
            before = simulated.given
            arrive("4", "a", 101.0)
            until(lambda: simulated.given > before, "the change in the hands of the worker")
            workers.kill(0)
        assert "4" not in ids(), "it was held back when the worker was killed"
        arrive("5", "a", 100.9)
        with deduplicating(kinesis):
            until(lambda: len(ids()) >= 5, "what was held, and what came before it")
            assert ids()[3:] == ["5", "4"]
            assert not any(change.headers for change in raw())
            arrive("6", "a", 100.1)
            until(lambda: len(ids()) >= 6, "what came after the window")
            assert raw()[5].headers == [("late", b"101000000")]


def test_trap_15_records_in_one_record_are_all_kept_and_a_damaged_one_is_a_dead_letter(kinesis: Deployment) -> None:
    kinesis.more |= {"codec": "json"}
    packed = aggregate([Sub("a", b'{"n": 1}'), Sub("b", b'{"n": 2}'), Sub("a", b'{"n": 1}')])
    damaged = packed[:-1] + b"\x00"
    kinesis.shape(lambda stream: put_record(stream, "a", "", packed, 1.0))
    kinesis.shape(lambda stream: put_record(stream, "a", "", damaged, 1.0))
    kinesis.shape(lambda stream: put_record(stream, "c", "", b'{"n": 3}', 1.0))
    with (
        reading(kinesis, kinesis.topics.raw) as raw,
        Recorder(kinesis.conf, kinesis.topics.dead_letter) as dead,
        deduplicating(kinesis),
    ):
        until(lambda: len(raw()) >= 4 and len(dead) >= 1, "the changes, and the letter")
        assert [change.event_id.count(":") for change in raw()] == [3, 3, 3, 2]
        assert [one.value() for one in dead] == [damaged]


def test_a_rough_day_loses_and_doubles_nothing_and_a_stream_without_order_is_warned_of(
    stack: Endpoints, tmp_path: Path
) -> None:
    rates = replace(Rates.rough(), throttle=0.2, error=0.05)
    with deployed(stack, tmp_path, replace(CALM, shards=3), rates=rates) as deployment, deployment.ingested() as found:
        deployment.more = {"kind": "kinesis", "streams": [TABLE]}
        deployment.world.do(lambda _: setattr(deployment.world.simulator.kinesis, "strategy", "AUTO"))
        with deployment.worker():
            for number in range(3):
                deployment.change(20)
                deployment.shape(roll)
                until(lambda number=number: len(found()) >= 20 * (number + 1), "the changes")  # type: ignore[misc]
        assert sorted(found()) == sorted(deployment.truth)
        assert deployment.log.count("distributes its records automatically") == 1


def test_a_corrected_dead_letter_of_ingest_goes_through_the_codec_and_only_open_dead_letters_count(
    kinesis: Deployment, headwater: Headwater
) -> None:
    kinesis.more |= {"codec": "json"}
    environment = kinesis.environment()

    def put_all(world: World) -> None:
        stream = world.tables[TABLE].stream
        for key, data in (("a", b"{oops"), ("b", b"[1]"), ("c", b"{}"), ("d", b"nothing")):
            put_record(stream, key, f"put-{key}", data, 100.0)

    def listed(*more: str) -> list[dict[str, Any]]:
        told = headwater("dlq", "list", *more, **environment)
        assert told.returncode in {0, 1}, told.stderr
        return [json.loads(line) for line in told.stdout.splitlines()]

    def counted() -> int:
        count: int = json.loads(headwater("status", "--json", **environment).stdout)["dead_letters"]
        return count

    with (
        reading(kinesis, kinesis.topics.raw) as raw,
        Recorder(kinesis.conf, kinesis.topics.dead_letter) as dead,
        deduplicating(kinesis),
    ):
        kinesis.world.do(put_all)
        until(lambda: len(raw()) >= 1 and len(dead) >= 3, "a change and three letters")
        first, second, third = sorted(listed(), key=lambda one: str(one["key"]))
        assert counted() == 3
        assert first["origin"]["partition_key"] == "a"
        refused = headwater("dlq", "retry", first["id"], **environment)
        assert (refused.returncode, "cannot be read as the codec json" in refused.stderr) == (2, True)
        (kinesis.directory / "mended.json").write_text('{"n": 8}')
        edited = headwater("dlq", "edit", first["id"], str(kinesis.directory / "mended.json"), **environment)
        assert edited.returncode == 0, edited.stderr
        until(lambda: len(raw()) >= 2, "the mended change")
        mended = raw()[1]
        assert mended.key == b'{"partition_key":{"S":"a"}}'
        assert mended.event_id == f"{TABLE}:{first['origin']['shard']}:{first['origin']['sequence']}"
        assert [name for name, _ in mended.headers] == ["late"]
        assert headwater("dlq", "skip", second["id"], **environment).returncode == 0
        assert [one["id"] for one in listed()] == [third["id"]]
        assert counted() == 1
        assert headwater("dlq", "skip", third["id"], **environment).returncode == 0
        assert (listed(), counted()) == ([], 0)
        assert len(listed("--all")) == 3
