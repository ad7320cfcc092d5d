"""Iceberg tables: every change once, or every item as it is now, whatever fails when."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from carried import PARTITION, Clock, Killed, Killer, Owner
from confluent_kafka import Message

from pipeline.errors import TransientError
from pipeline.sinks.iceberg import IcebergSink
from pipeline.sinks.lake import Rotation


def record(offset: int, key: str, op: str, **item: dict[str, Any]) -> Message:
    body: dict[str, Any] = {"Keys": {"k": {"S": key}}, "SequenceNumber": str(offset), "ApproximateCreationDateTime": 1}
    if op != "REMOVE":
        body["NewImage"] = {"k": {"S": key}, **item}
    arn = "arn:aws:dynamodb:eu-west-1:1:table/T/stream/x"
    value = {"eventID": f"e{offset}", "eventName": op, "eventSourceARN": arn, "dynamodb": body}
    key_bytes = json.dumps({"k": {"S": key}}).encode()
    return Message(*PARTITION, offset=offset, key=key_bytes, value=json.dumps(value).encode(), timestamp=(1, offset))


def lake(
    directory: Path,
    mode: Literal["append", "upsert"],
    layout: Literal["envelope", "columns"] = "columns",
    killer: Killer | None = None,
) -> Callable[[Clock], IcebergSink]:
    def make(clock: Clock) -> IcebergSink:
        catalog = {"type": "sql", "uri": f"sqlite:///{directory}/catalog.db", "warehouse": f"file://{directory}"}
        rotation = Rotation(4, 1 << 20, 60, 0)
        sink = IcebergSink(catalog, "n", rotation, layout=layout, mode=mode, clock=clock)
        if killer is not None:
            sink._commit = killer.wrap(sink._commit)  # type: ignore[method-assign]
        return sink

    return make


def carry(owner: Owner, slices: int = 8) -> int | None:
    committed = None
    for _ in range(slices):
        committed = owner.slice(3) or committed
        owner.work()
        owner.clock.now += 100
    return committed


def rows(owner: Owner) -> list[dict[str, Any]]:
    sink = owner.sink
    assert isinstance(sink, IcebergSink)
    found: list[dict[str, Any]] = sink.catalog.load_table(("n", "T")).scan().to_arrow().to_pylist()
    return found


HISTORY = {
    0: record(0, "a", "INSERT", n={"N": "1"}),
    1: record(1, "b", "INSERT", n={"N": "1.5"}, s={"S": "x"}),
    2: record(2, "a", "MODIFY", n={"N": "2"}),
    3: record(3, "b", "REMOVE"),
    5: record(5, "c", "INSERT", n={"N": "1E+100"}, m={"M": {"x": {"S": "y"}}}),
    6: record(6, "a", "MODIFY", n={"N": "3"}, new={"BOOL": True}),
    7: record(7, "d", "INSERT", n={"S": "no number"}),
}


def test_every_change_is_a_row(tmp_path: Path) -> None:
    owner = Owner(lake(tmp_path, "append"), HISTORY, 0)
    assert carry(owner) == 8
    assert [row["_offset"] for row in sorted(rows(owner), key=lambda row: row["_offset"])] == list(HISTORY)


def test_the_envelope_is_the_same_for_every_table(tmp_path: Path) -> None:
    owner = Owner(lake(tmp_path, "append", "envelope"), HISTORY, 0)
    carry(owner)
    assert {row["table"] for row in rows(owner)} == {"T"}
    assert sorted(row["offset"] for row in rows(owner)) == list(HISTORY)


def test_every_item_is_a_row_as_it_is_now(tmp_path: Path) -> None:
    owner = Owner(lake(tmp_path, "upsert"), HISTORY, 0)
    carry(owner)
    found = {row["k"]: row for row in rows(owner)}
    assert sorted(found) == ["a", "c", "d"]
    assert found["a"]["n"] == Decimal(3)
    assert found["a"]["new"] is True
    assert json.loads(found["c"]["_overflow"]) == {"n": {"N": "1E+100"}}
    assert json.loads(found["c"]["m"]) == {"x": {"S": "y"}}
    assert json.loads(found["d"]["_overflow"]) == {"n": {"S": "no number"}}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("mode", ["append", "upsert"])
@pytest.mark.parametrize("how", ["kill", "fail"])
def test_nothing_is_lost_or_doubled(tmp_path: Path, mode: Literal["append", "upsert"], how: str, after: bool) -> None:
    killer = Killer()
    make = lake(tmp_path, mode, killer=killer)
    owner, committed = Owner(make, HISTORY, 0), 0
    for round_ in range(6):
        error = TransientError("slow down") if how == "fail" else None
        killer.plan(round_ % 2, after=after, error=error)
        try:
            committed = owner.slice(3) or committed
            owner.work()
        except Killed:
            owner = Owner(make, HISTORY, committed)
        owner.clock.now += 100
    killer.plan(-1, after=False)
    assert carry(owner) in {8, None}
    found = rows(owner)
    if mode == "append":
        assert sorted(row["_offset"] for row in found) == list(HISTORY)
    else:
        assert sorted(row["k"] for row in found) == ["a", "c", "d"]


def test_a_former_owner_adds_nothing(tmp_path: Path) -> None:
    make = lake(tmp_path, "append")
    zombie, owner = Owner(make, HISTORY, 0), Owner(make, HISTORY, 0)
    zombie.slice(5)
    carry(owner)
    zombie.work()
    zombie.clock.now += 100
    zombie.slice(0)
    zombie.work()
    assert sorted(row["_offset"] for row in rows(owner)) == list(HISTORY)
