"""Enhanced fan-out: what polling gives, pushed by subscriptions that end, break off and are taken over."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Headwater
from support.waiting import until
from test_kinesis import CALM, deduplicating, in_order, list_all, reading, what_is_trimmed_unread_is_a_gap
from test_source_traps import TABLE, Deployment, deployed, roll

from headwater.lab.recorder import Recorder
from headwater.lab.simulator.faults import Rates
from headwater.lab.simulator.history import SimulatedStream
from headwater.lab.simulator.world import World
from headwater.lab.stack import Endpoints
from pipeline.topics.admin import admin, ensure

pytestmark = pytest.mark.kafka
FAN_OUT = {"kind": "kinesis", "streams": [TABLE], "read": "fan-out"}


@pytest.fixture
def pushed(stack: Endpoints, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(stack, tmp_path, CALM) as found:
        found.more = dict(FAN_OUT)
        yield found


def by_item(records: Recorder) -> dict[bytes, list[bytes]]:
    """The messages of each key, in order."""
    found: dict[bytes, list[bytes]] = {}
    for record in records:
        found.setdefault(record.key() or b"", []).append(record.value() or b"")
    return found


def test_shards_that_split_and_merge_are_pushed_parents_first_and_give_what_polling_gives(
    stack: Endpoints, tmp_path: Path
) -> None:
    plan = replace(CALM, shards=6, items=60, duplicates=0.2, reordered=0.3, aggregate=3)

    def reshape(stream: SimulatedStream) -> None:
        stream.split(stream.open[0])
        assert stream.merge(stream.open[2])
        list_all(stream)

    with deployed(stack, tmp_path / "pushed", plan) as deployment:
        deployment.more = FAN_OUT
        with (
            reading(deployment, deployment.topics.raw) as raw,
            Recorder(deployment.conf, deployment.topics.ingest) as ingest,
        ):
            with deduplicating(deployment, 2):
                for _ in range(3):
                    deployment.change(60)
                    deployment.world.do(World.settle)
                    deployment.shape(reshape)
                deployment.change(60)
                deployment.world.do(World.settle)
                until(lambda: len(raw()) >= 240, "all changes")
                records = deployment.world.do(
                    lambda world: sum(len(s.records) for s in world.tables[TABLE].stream.shards.values())
                )
                assert records > 80
            in_order(raw(), deployment)
            assert deployment.calls("GetRecords") == 0
            polled = replace(deployment, prefix=f"t{uuid.uuid4().hex[:8]}", directory=tmp_path / "polled")
            polled.more = {**FAN_OUT, "read": "polling"}
            ensure(admin(polled.conf), polled.topics.all(), 1)
            with Recorder(polled.conf, polled.topics.ingest) as other, polled.worker():
                until(lambda: len(other) >= len(ingest), "the same changes")
                assert by_item(other) == by_item(ingest)


def test_subscriptions_that_end_break_off_and_fail_lose_and_double_nothing(stack: Endpoints, tmp_path: Path) -> None:
    rates = replace(Rates.rough(), cut=0.1, broken=0.1)
    options = {"rates": rates, "subscription_seconds": 2.0}
    with deployed(stack, tmp_path, replace(CALM, shards=3), **options) as deployment:
        deployment.more = dict(FAN_OUT)
        with deployment.ingested() as found, deployment.worker():
            for number in range(3):
                deployment.change(20)
                deployment.shape(roll)
                until(lambda number=number: len(found()) >= 20 * (number + 1), "the changes")  # type: ignore[misc]
            faults = deployment.world.simulator.faults.counts
            until(lambda: {"cut", "broken"} <= faults.keys(), "a subscription that broke off, and one that failed")
            deployment.change(20)
            until(lambda: len(found()) >= 80, "the last changes")
        assert sorted(found()) == sorted(deployment.truth)


def test_a_worker_continues_where_the_one_before_has_left_off(pushed: Deployment) -> None:
    pushed.change(10)
    with pushed.ingested() as found, pushed.gaps() as gaps:
        with pushed.worker() as workers:
            until(lambda: len(found()) >= 10, "the first changes")
            workers.kill(0)
        pushed.change(10)
        pushed.shape(roll)
        pushed.change(10)
        with pushed.worker():
            until(lambda: len(found()) >= 30, "what came meanwhile, of both shards")
            pushed.change(1)
            until(lambda: len(found()) >= 31, "the last change")
        assert sorted(found()) == sorted(pushed.truth)
        assert gaps() == []


def test_a_worker_that_was_frozen_and_its_subscriptions_do_not_get_in_the_way(stack: Endpoints, tmp_path: Path) -> None:
    with deployed(stack, tmp_path, replace(CALM, shards=4, items=60)) as deployment:
        deployment.more = dict(FAN_OUT)
        with reading(deployment, deployment.topics.raw) as raw, deduplicating(deployment, 2) as workers:

            def came(count: int) -> bool:
                workers.watch()
                return len(raw()) >= count

            deployment.change(60)
            until(lambda: came(60), "the first changes")
            for number in range(2):  # one after the other, longer than the session lasts
                workers.freeze(number, 9)
                deployment.change(60)
                until(lambda number=number: came(60 * (number + 2)), "the changes, by the other worker")  # type: ignore[misc]
                until(lambda: came(0) and not workers.frozen, "both workers at work again")
            deployment.change(60)
            until(lambda: came(240), "the last changes")
            in_order(raw(), deployment)


def test_two_deployments_with_one_consumer_hear_of_it_and_both_get_everything(
    pushed: Deployment, tmp_path: Path
) -> None:
    other = replace(pushed, prefix=f"t{uuid.uuid4().hex[:8]}", directory=tmp_path / "other")
    ensure(admin(other.conf), other.topics.all(), 1)
    with pushed.ingested() as found, other.ingested() as theirs, pushed.worker(), other.worker():
        pushed.change(10)
        until(lambda: "uses the same consumer" in pushed.log + other.log, "the warning")
        pushed.change(10)
        until(lambda: min(len(found()), len(theirs())) >= 20, "the changes, at both")
        assert sorted(found()) == sorted(theirs()) == sorted(pushed.truth)


def test_what_is_trimmed_before_it_was_pushed_is_a_gap(pushed: Deployment) -> None:
    what_is_trimmed_unread_is_a_gap(pushed)


def test_a_consumer_that_is_deleted_is_registered_again_and_nothing_is_taken_for_lost(pushed: Deployment) -> None:
    consumers = pushed.world.simulator.fan_out.consumers
    with pushed.ingested() as found, pushed.gaps() as gaps, pushed.worker():
        pushed.change(10)
        until(lambda: len(found()) >= 10, "the first changes")
        assert [consumer.name for consumer in consumers.values()] == ["headwater"]
        pushed.world.do(lambda _: consumers.clear())
        until(lambda: len(consumers) == 1, "the consumer, again")
        pushed.change(10)
        until(lambda: len(found()) >= 20, "the changes after the consumer was deleted")
    assert sorted(found()) == sorted(pushed.truth)
    assert gaps() == []


def test_check_looks_at_the_consumer_and_registers_none(pushed: Deployment, headwater: Headwater) -> None:
    def look() -> str:
        done = headwater("check", "--json", **pushed.environment())
        assert done.stdout, done.stderr
        (found,) = [load["detail"] for load in json.loads(done.stdout) if load["what"] == f"stream {TABLE}"]
        return str(found)

    assert look().endswith("the consumer headwater is not there yet: the first worker registers it")
    assert pushed.calls("RegisterStreamConsumer") == 0
    with pushed.worker():
        until(lambda: pushed.calls("SubscribeToShard") > 0, "a subscription")
    assert look().endswith("is ACTIVE")


def test_a_consumer_that_is_named_by_an_arn_is_not_made_up(pushed: Deployment) -> None:
    arn = pushed.world.do(lambda world: world.tables[TABLE].stream.arn)
    pushed.more["consumer"] = f"{arn}/consumer/theirs:1"
    with pushed.worker() as workers:
        until(lambda: not workers.all[0].alive(), "the end of the worker")
    assert f"there is no consumer {arn}/consumer/theirs:1 (try: aws kinesis list-stream-consumers" in pushed.log
    assert pushed.calls("RegisterStreamConsumer") == 0
