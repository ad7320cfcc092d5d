"""Items that leave a sink, on Apache Kafka: sinks read as tables have what their routes match, also when references change."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Headwater
from support.transform_workers import Flowing
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints

pytestmark = pytest.mark.kafka
JOIN = {"kind": "join", "table": "customers", "on": "customer", "into": "c", "on_reference_change": "re-emit"}
SINKS = ("gold", "paid", "rest")


def table(sink: Recorder) -> dict[bytes | None, bytes]:
    """Return a sink as a table: the last value of each key that has one."""
    found: dict[bytes | None, bytes] = {}
    for record in sink:
        value = record.value()
        if value is None:
            found.pop(record.key(), None)
        else:
            found[record.key()] = value
    return found


def test_sinks_are_tables_also_when_a_reference_moves_items(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    headwater("flows", "new-key", str(tmp_path / "mask.key"))
    flow = {
        "name": "f",
        "from": ["orders"],
        "enrich": [JOIN],
        "to": [
            {"sink": "gold", "where": "enriched.c != null && enriched.c.tier == 'gold'"},
            {"sink": "paid", "where": {"dynamodb": {"NewImage": {"status": {"S": ["paid"]}}}}},
        ],
        "otherwise": "rest",
        "mask": [{"path": "id", "how": "hash"}],
        "mask_key": f"file:{tmp_path / 'mask.key'}",
        "envelope": "plain",
    }
    flowing = Flowing(kafka_stack, tmp_path, [flow])
    with (
        flowing.recorded(flowing.topics.sink("gold")) as gold,
        flowing.recorded(flowing.topics.sink("paid")) as paid,
        flowing.recorded(flowing.topics.sink("rest")) as rest,
    ):

        def orders() -> list[list[str]]:
            """Return the orders of each sink by their numbers, which are not masked."""
            return [
                sorted(value.split(b'"name":"')[1][:2].decode() for value in table(sink).values()) for sink in sinks
            ]

        sinks = (gold, paid, rest)
        with flowing.fleet.running():
            flowing.change("ada", {"tier": "gold"}, table="customers")
            until(lambda: flowing.references() == 1, "the customer")
            first, second = {"name": "o1", "customer": "ada", "status": "open"}, {"name": "o2", "customer": "bob"}
            flowing.change("o1", first)
            flowing.change("o2", {**second, "status": "paid"})
            flowing.change("o3", {"name": "o3", "customer": "bob", "status": "open"})
            until(lambda: orders() == [["o1"], ["o2"], ["o3"]], "each in its sink")
            flowing.change("o2", {**second, "status": "open"}, old={**second, "status": "paid"})
            until(lambda: orders() == [["o1"], [], ["o2", "o3"]], "one has moved")
            flowing.change("ada", {"tier": "iron"}, table="customers")
            until(lambda: orders() == [[], [], ["o1", "o2", "o3"]], "a reference has moved one")
        with flowing.fleet.running():  # other workers, with what the first have noted
            flowing.change("bob", {"tier": "gold"}, table="customers")
            until(lambda: orders() == [["o2", "o3"], [], ["o1"]], "a reference has moved two")
            flowing.change("o3", None, old={"name": "o3", "customer": "bob", "status": "open"})
            flowing.change("o1", {**first, "customer": "bob"}, old=first)
            until(lambda: orders() == [["o1", "o2"], [], []], "one was deleted, one has another customer")
        told = [dict(record.headers() or []) for sink in sinks for record in sink if record.value() is None]
        assert {one["op"] for one in told} == {b"d"}
        assert {one.get("moved_to") for one in told} == {b"gold", b"rest", None}
        assert not {b"o1", b"o2", b"o3"} & {record.key() for sink in sinks for record in sink}
