"""Joins of partitioned tables on Apache Kafka: exact in the order of raw, whoever has the partition, whatever was lost."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Headwater
from support.transform_workers import Flowing
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints

pytestmark = pytest.mark.kafka
JOIN = {"kind": "join", "table": "totals", "state": "partitioned", "into": "total"}


def flow(**more: Any) -> dict[str, Any]:
    return {"name": "f", "from": ["orders", "refunds"], "enrich": [{**JOIN, **more}], "to": "a", "reject_limit": 1.0}


def key(number: int) -> dict[str, Any]:
    """A composite key; those of 0 to 9 are in both partitions."""
    return {"order": f"o{number}", "year": 2026}


def sent(sink: Recorder) -> list[tuple[str, str]]:
    """Event IDs, and the sum of the total that the change was joined with, '' for none, in the order of each partition."""
    none = {"sum": {"N": ""}}
    values = [json.loads(record.value() or b"") for record in sink]
    return [(value["eventID"], value["enriched"]["total"].get("M", none)["sum"]["N"]) for value in values]


def test_a_change_is_joined_with_the_item_of_its_own_key_as_it_was_then(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    flowing = Flowing(kafka_stack, tmp_path, [flow()])
    expected = []

    def write(number: int, event: int, version: int) -> int:
        """Change a total and its order in turn; note what the orders must be joined with."""
        flowing.change(key(number), {"n": 1}, flush=False)
        flowing.change(key(number), {"sum": version}, table="totals", flush=False)
        flowing.change(key(number), {"n": 2}, flush=False)
        flowing.change(key(number), {"sum": version + 1}, table="totals", flush=False)
        flowing.change(key(number), {"n": 3})
        before = "" if version == 1 else str(version - 1)
        expected.extend([(f"e{event}", before), (f"e{event + 2}", str(version)), (f"e{event + 4}", str(version + 1))])
        return event + 5

    with (
        flowing.recorded(flowing.topics.sink("a")) as sink,
        flowing.recorded(flowing.topics.dead_letter) as dead,
    ):
        event = 1
        for number in range(10):  # before there is a worker: they come to it in one batch
            event = write(number, event, 1)
        with flowing.fleet.running():
            until(lambda: len(sink) == 30, "all orders")
            assert sorted(sent(sink)) == sorted(expected)
            flowing.change({"id": "o1"}, {"n": 1})
            flowing.change({"id": "o2"}, {"n": 1})
            flowing.change({"id": "o3"}, {"n": 1})
            until(lambda: len(dead) == 3, "what can never be joined")
            event += 3
            for letter in dead:
                said = repr(letter.headers())
                assert "has the key order (S), year (N), the change has the key id (S)" in said
                assert 'state = "global"' in said
        # What a replay finds is what there is now.
        replayed = headwater("replay", "--from", "earliest", "--into", "again", **flowing.environment())
        assert replayed.returncode == 0, replayed.stderr
        with flowing.recorded(f"{flowing.topics.sink('a')}.again") as again:
            until(lambda: len(again) == 30, "all orders again")
            assert {joined for _, joined in sent(again)} == {"2"}
        (tmp_path / "worker-1.state").rename(tmp_path / "lost.state")  # the items are in Kafka, not on this disk
        with flowing.fleet.running(2) as workers:
            for number in range(10):
                event = write(number, event, 3)
            until(lambda: len(sink) == 60, "all orders, by two workers")
            assert sorted(sent(sink)) == sorted(expected)
            workers.all[1].signal(signal.SIGKILL)
            for number in range(10):
                event = write(number, event, 5)
            until(lambda: len(sink) == 90, "all orders, by the worker that is left")
            assert sorted(sent(sink)) == sorted(expected)
            assert len(dead) == 3


def test_a_change_waits_for_the_item_of_its_own_key_and_is_sent_again_when_that_changes_or_goes(
    kafka_stack: Endpoints, tmp_path: Path
) -> None:
    flowing = Flowing(kafka_stack, tmp_path, [flow(hold=600, on_reference_change="re-emit")])
    with (
        flowing.recorded(flowing.topics.sink("a")) as sink,
        flowing.recorded(flowing.topics.dead_letter) as dead,
    ):
        with flowing.fleet.running():
            flowing.change(key(1), {"sum": 1}, table="totals")  # e1
            flowing.change(key(1), {"n": 1})  # e2
            flowing.change(key(2), {"n": 1})  # e3 waits
            flowing.change(key(2), {"n": 2})  # e4 waits behind it
            until(lambda: len(sink) == 1, "what need not wait")
        (tmp_path / "worker-1.state").rename(tmp_path / "lost.state")
        with flowing.fleet.running():
            flowing.change(key(2), {"sum": 2}, table="totals")  # e5
            until(lambda: len(sink) == 3, "what has waited")
            assert sorted(sent(sink)) == [("e2", "1"), ("e3", "2"), ("e4", "2")]
            flowing.change(key(1), {"n": 2}, table="refunds")  # e6: of another table, with the same key
            until(lambda: len(sink) == 4, "a refund")
            flowing.change(key(1), {"sum": 3}, table="totals")  # e7
            until(lambda: len(sink) == 6, "the order and the refund again")
            assert sorted(sent(sink))[1::2] == [("e2", "3"), ("e4", "2"), ("e6", "3")]
            flowing.change(key(1), {"sum": 3}, table="totals")  # e8 changes nothing
            flowing.change(key(2), None)  # e9: of an item that is gone nothing is sent again
            until(lambda: len(sink) == 7, "the deletion")
            flowing.change(key(2), {"sum": 4}, table="totals")  # e10
            flowing.change(key(1), None, table="totals")  # e11
            until(lambda: len(sink) == 9, "the order and the refund without their total")
            assert sorted(one for one in sent(sink) if not one[1]) == [("e2", ""), ("e6", "")]
            marks = [dict(record.headers() or []).get("re_emitted") for record in sink]
            assert marks.count(b"totals") == 4
            assert marks.count(None) == 5
        assert len(dead) == 0
