"""Any order, duplicates, failures and restarts: an item of the replica ends with its newest change."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st
from support.dynamodb_in_memory import FakeDynamoDB, refused

from pipeline.errors import TransientError
from pipeline.settings.sinks import ReplicaSettings
from pipeline.sinks.replica.sink import ReplicaWriter
from pipeline.sinks.replica.table import ReplicaTable

KEYS = ["a", "b"]
MODES: dict[str, dict[str, Any]] = {
    "attribute": {},
    "table": {"version": "table"},
    "attribute, nothing remembered": {"tombstone_seconds": 0},
    "table, nothing remembered": {"version": "table", "tombstone_seconds": 0},
}


class Record:
    """What the replica reads of a Kafka message."""

    def __init__(self, value: bytes, offset: int) -> None:
        self._value, self._offset = value, offset

    def value(self) -> bytes:
        return self._value

    def offset(self) -> int:
        return self._offset

    def __len__(self) -> int:
        return len(self._value)


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """Draw the changes of two items, in the order in which they happened; some in the same second."""
    there: dict[str, int] = {}
    values = []
    second = 1_764_000_000
    for number in range(1, draw(st.integers(1, 10)) + 1):
        key = draw(st.sampled_from(KEYS))
        second += draw(st.integers(0, 1))
        gone = key in there and draw(st.booleans())
        op = "REMOVE" if gone else "MODIFY" if key in there else "INSERT"
        there.pop(key, None)
        body: dict[str, Any] = {"Keys": {"id": {"S": key}}, "ApproximateCreationDateTime": second}
        if not gone:
            there[key] = number
            body["NewImage"] = {"id": {"S": key}, "n": {"N": str(number)}}
        body["SequenceNumber"] = f"{number * 9}"  # 9, 18, ..., 108: as text they are not in order
        change = {"eventID": f"e{number}", "eventName": op, "tableName": "t", "dynamodb": body}
        values.append(json.dumps(change).encode())
    return values


def state(client: FakeDynamoDB) -> dict[str, str]:
    return {item["id"]["S"]: item["n"]["N"] for item in client.tables["t"].values()}


def folded(values: list[bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        body = json.loads(value)["dynamodb"]
        key = body["Keys"]["id"]["S"]
        found.pop(key, None)
        if "NewImage" in body:
            found[key] = body["NewImage"]["n"]["N"]
    return found


class Troubled:
    """Makes calls fail, before they have done anything or after, as drawn; then all goes well."""

    def __init__(self, plan: list[str]) -> None:
        self.plan = plan

    def __call__(self, when: str) -> None:
        if self.plan and self.plan[0] in {when, "fine"}:
            kind = self.plan.pop(0)
            if kind == when:
                raise refused("InternalServerError" if when == "before" else "RequestLimitExceeded")


def carry(
    client: FakeDynamoDB, settings: ReplicaSettings, records: list[Message], data: st.DataObject, begin: int = 0
) -> None:
    """Apply records as a worker does: in flushes of any size, tried again after errors, sometimes by a new owner."""
    with ThreadPoolExecutor(1) as calls:  # one: so that hypothesis can find the same again
        table = ReplicaTable(cast("Any", client), settings)
        done = begin
        while done < len(records):
            writer = ReplicaWriter(done, table, settings, calls)
            added = done
            while done < len(records):
                if added < len(records):
                    more = data.draw(st.integers(1, len(records) - added), label="added")
                    assert not writer.add(records[added : added + more], added + more)
                    added += more
                try:
                    done = writer.flush().end  # what was added, or a part of it
                except TransientError:
                    if data.draw(st.booleans(), label="new owner"):
                        break


troubles = st.lists(st.sampled_from(["fine", "before", "after"]), max_size=8)


@pytest.mark.parametrize("mode", ["attribute", "table"])
@given(data=st.data(), values=histories(), plan=troubles)
def test_changes_in_any_order_and_any_number_end_with_the_newest(
    mode: str, data: st.DataObject, values: list[bytes], plan: list[str]
) -> None:
    again = data.draw(st.lists(st.sampled_from(values), max_size=4), label="again")
    shuffled = data.draw(st.permutations(values + again), label="order")
    client = FakeDynamoDB({"t": "id", "t.versions": "item"}, Troubled(plan))
    settings = ReplicaSettings(sinks=("s",), **MODES[mode])
    records = [cast("Message", Record(value, offset)) for offset, value in enumerate(shuffled)]
    carry(client, settings, records, data)
    assert state(client) == folded(values)
    # A zombie does the whole again, from anywhere.
    carry(client, settings, records, data, data.draw(st.integers(0, len(records) - 1), label="zombie"))
    assert state(client) == folded(values)
    versions = {row["item"]["S"] for row in client.tables["t.versions"].values()}
    live = {f't/{{"id":{{"S":"{key}"}}}}' for key in folded(values)}
    assert versions.isdisjoint(live) if mode == "attribute" else versions >= live


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data(), values=histories(), plan=troubles)
def test_changes_in_order_end_with_the_newest_also_where_nothing_is_remembered(
    mode: str, data: st.DataObject, values: list[bytes], plan: list[str]
) -> None:
    client = FakeDynamoDB({"t": "id", "t.versions": "item"}, Troubled(plan))
    records = [cast("Message", Record(value, offset)) for offset, value in enumerate(values)]
    carry(client, ReplicaSettings(sinks=("s",), **MODES[mode]), records, data)
    assert state(client) == folded(values)
