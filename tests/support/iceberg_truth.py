"""Iceberg tables of hostile names and numbers, and what every reader must find in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from confluent_kafka import Message
from faust.types import TP

from pipeline.sinks.lake.iceberg.columns import columns_of
from pipeline.sinks.lake.iceberg.maintain import Ages, maintain_tables
from pipeline.sinks.lake.iceberg.sink import IcebergSink
from pipeline.sinks.lake.layouts.columns import item_of
from pipeline.sinks.lake.sink import Rotation

TOPIC = TP("p.sink.s", 0)
ITEMS, CHANGES = 60, 600
ALL = Ages(snapshots=timedelta(0), keep=1, orphans=timedelta(0))
"""All that is not needed goes: no worker is about to commit files."""
NAMES = [
    "a",
    "A",
    "a-b",
    "a_x2Db",
    "a.b",
    "größe",
    "価格",
    "😀",
    "order by",
    "a`b",
    "_partition",
    "_topic_partition",
    "_Key",
    "",
]
VALUES: list[dict[str, Any]] = [
    {"N": "10"},
    {"N": "10.5"},
    {"N": "90071992547409.93"},
    {"N": "12345678901234567890123456789.123456789"},
    {"N": "1E+100"},
    {"S": "x"},
    {"S": ""},
    {"BOOL": True},
    {"NULL": True},
    {"B": "AAH/"},
    {"SS": ["a", "b"]},
    {"NS": ["1", "2.5"]},
    {"BS": ["AAH/"]},
    {"M": {"x": {"N": "1"}}},
    {"L": [{"S": "y"}]},
]
Mode = Literal["append", "upsert"]
MODES: tuple[Mode, ...] = ("append", "upsert")


def change(number: int) -> dict[str, Any]:
    """Return a change, the same whenever it is asked for; each seventh deletes its item."""
    key = {"id": {"S": f"k{number * 7 % ITEMS}"}}
    names = {NAMES[(number + n) % len(NAMES)]: VALUES[(number * 5 + n) % len(VALUES)] for n in range(3)}
    body: dict[str, Any] = {"Keys": key, "SequenceNumber": str(number + 1)}
    body["ApproximateCreationDateTime"] = 1_764_000_000 + number // 10
    if number % 7:
        body["NewImage"] = {**key, **names}
    event = "MODIFY" if number % 7 else "REMOVE"
    return {"eventID": f"e{number}", "eventName": event, "tableName": "t", "dynamodb": body}


def catalog_of(directory: Path, name: str = "catalog") -> dict[str, str]:
    return {"type": "sql", "uri": f"sqlite:///{directory}/{name}.db", "warehouse": f"file://{directory}"}


def sink_of(directory: Path, mode: Mode, catalog: str = "catalog") -> IcebergSink:
    rotation = Rotation(10_000, 1 << 27, 60, 0)
    return IcebergSink(catalog_of(directory, catalog), "n", rotation, layout="columns", mode=mode, clock=lambda: 0.0)


def bring(sink: IcebergSink, first: int, end: int, flush: int = 100) -> None:
    for begin in range(first, end, flush):
        records = []
        for number in range(begin, min(end, begin + flush)):
            value = change(number)
            key = json.dumps(value["dynamodb"]["Keys"], separators=(",", ":")).encode()
            records.append(Message(*TOPIC, offset=number, key=key, value=json.dumps(value).encode()))
        writer = sink.open(TOPIC, begin)
        assert not writer.add(records, begin + len(records))
        assert not writer.flush().rejected


def truth(mode: str, end: int) -> dict[str, dict[str, Any]]:
    """The items that the rows hold, by event ID."""
    rows: dict[str, dict[str, Any]] = {}
    for number in range(end):
        body = change(number)["dynamodb"]
        name = f"e{number}" if mode == "append" else body["Keys"]["id"]["S"]
        if "NewImage" in body:
            rows[name] = body["NewImage"]
        elif mode == "append":
            rows[name] = body["Keys"]
        else:
            rows.pop(name, None)
    return rows


def exact(value: Any) -> Any:
    """Return an item with its numbers as they count, not as they are written."""
    if isinstance(value, dict):
        return {name: Decimal(one) if name == "N" else exact(one) for name, one in value.items()}
    return [exact(one) for one in value] if isinstance(value, list) else value


def require(rows: list[dict[str, Any]], table: Any, mode: str, end: int) -> None:
    """Every value is the truth, and what pyiceberg reads."""
    columns, name = columns_of(table).columns, "_event_id" if mode == "append" else "id"
    found = {row[name]: exact(json.loads(json.dumps(item_of(row, columns), default=str))) for row in rows}
    if mode == "append":
        assert len(rows) == end
    assert len(found) == len(rows)
    assert found == {name: exact(item) for name, item in truth(mode, end).items()}
    ours = table.scan().to_arrow().to_pylist()
    sort: Callable[[dict[str, Any]], Any] = lambda row: row["_offset"]  # noqa: E731
    assert sorted(rows, key=sort) == sorted(ours, key=sort)


def kept_table(directory: Path, mode: Mode) -> IcebergSink:
    """Make a table of `CHANGES` changes, with an upkeep in the middle; return its sink."""
    directory.mkdir()
    sink = sink_of(directory, mode)
    bring(sink, 0, CHANGES // 2)
    kept = maintain_tables(catalog_of(directory), "n", ages=ALL, now=datetime.now(UTC) + timedelta(days=9), fewest=2)
    assert sum(table.compacted + table.orphans for table in kept.tables) > 0
    bring(sink, CHANGES // 2, CHANGES)
    return sink
