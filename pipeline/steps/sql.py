"""Enrichment in SQL: a query of DuckDB over the changes of a batch. Pure: nothing but what is in memory can be read.

The relation `changes`: `id`, `event_id`, `op`, `table_name`, `ts_us`, and as JSON `key`, `before`, `after`, `enriched`.
Reference tables are relations of their names: `key` (its one key attribute) and `item`, both as JSON. What the query selects
beside `id` is added to the change of that id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

import duckdb
import msgspec
import pyarrow as pa

from models.attributes import typed
from pipeline.steps.event import Event, Step
from pipeline.steps.plain import encode, plain_added, plain_item, plain_value

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("event_id", pa.string()),
        ("op", pa.string()),
        ("table_name", pa.string()),
        ("ts_us", pa.int64()),
        ("key", pa.string()),
        ("before", pa.string()),
        ("after", pa.string()),
        ("enriched", pa.string()),
    ]
)
JSON = ("key", "before", "after", "enriched")
REFERENCE = pa.schema([("key", pa.string()), ("item", pa.string())])


class Rows(Protocol):
    """A reference table: its items, by key."""

    def version(self) -> object:
        """Return what is another when the items are others."""

    def rows(self) -> Sequence[tuple[bytes, bytes]]:
        """Return keys and items, in typed JSON."""


class QueryError(ValueError):
    """A query that DuckDB does not take, or whose answer says nothing of changes."""


def compile_query(query: str, tables: Mapping[str, Rows]) -> Step:
    """Return the step that runs a query; raise QueryError with DuckDB's reason when it cannot be run at all."""
    database = _Database(query, tables)
    wanted = _columns(query)
    try:
        database.run(_arrow([], wanted))
    except duckdb.Error as error:
        raise QueryError(str(error).splitlines()[0]) from error

    def step(events: Sequence[Event]) -> None:
        if not events:
            return
        try:
            answer = database.run(_arrow(events, wanted))
            _take(answer, events)
        except (duckdb.Error, QueryError, ValueError) as error:
            if len(events) == 1:
                events[0].error = QueryError(str(error).splitlines()[0])
                return
            # Which of them is at fault shows when they are given one by one.
            for event in events:
                step([event])

    return step


class _Database:
    """DuckDB in this process, shut in: no files, no network, one thread."""

    def __init__(self, query: str, tables: Mapping[str, Rows]) -> None:
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": "1",
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
        }
        self._connection = duckdb.connect(":memory:", config=config)
        self._connection.execute("SET TimeZone = 'UTC'")
        self._query, self._tables = query, tables
        self._versions: dict[str, object] = {}

    def run(self, changes: pa.Table) -> pa.Table:
        """Run the query over changes; the first time also the settings are locked."""
        for name, table in self._tables.items():
            if (version := table.version()) != self._versions.get(name, self):
                self._versions[name] = version
                self._connection.register(name, _reference(table))
        self._connection.register("changes", changes)
        return self._connection.execute(self._query).to_arrow_table()


def _reference(table: Rows) -> pa.Table:
    rows = table.rows()
    keys = [encode(plain_value(key)).decode() for key, _ in rows]
    items = [encode(plain_item(item)).decode() for _, item in rows]
    return pa.table([pa.array(keys, pa.string()), pa.array(items, pa.string())], schema=REFERENCE)


def _columns(query: str) -> frozenset[str]:
    """Return the columns of JSON that a query may look at: the others are not made, they are what most of the time goes to."""
    if "*" in query:
        return frozenset(JSON)
    return frozenset(name for name in JSON if re.search(rf"\b{name}\b", query, re.IGNORECASE))


def _arrow(events: Sequence[Event], wanted: frozenset[str]) -> pa.Table:
    columns: list[list[Any]] = [[] for _ in SCHEMA]
    for number, event in enumerate(events):
        change = event.change
        row = (
            number,
            change.event_id,
            change.op,
            change.table,
            change.ts_us,
            _json(bytes(change.body.keys)) if "key" in wanted else None,
            _json(event.before_json) if "before" in wanted else None,
            _json(event.after_json) if "after" in wanted else None,
            encode(plain_added(event.added)).decode() if event.added and "enriched" in wanted else None,
        )
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def _json(image: bytes | None) -> str | None:
    return None if image is None else encode(plain_item(image)).decode()


def _take(answer: pa.Table, events: Sequence[Event]) -> None:
    """Add what the query gave; nothing is changed when the answer is no good."""
    names = answer.column_names
    if "id" not in names:
        raise QueryError("the query must select id, of the relation changes")
    ids = answer.column("id").to_pylist()
    if len(set(ids)) != len(ids):
        raise QueryError("the query gives more than one row for a change: group by id")
    if not set(ids) <= set(range(len(events))):
        raise QueryError("the query gives ids that no change has")
    others = [name for name in names if name != "id"]
    values = [[_raw(value) for value in answer.column(name).to_pylist()] for name in others]
    for event in events:
        event.gone = True
    for row, number in enumerate(ids):
        events[number].gone = False
        events[number].added |= {name: column[row] for name, column in zip(others, values, strict=True)}


def _raw(value: Any) -> msgspec.Raw:
    if isinstance(value, Decimal):  # DECIMAL(38, 2) gives 2.50
        value = value.normalize() if value else Decimal(0)
        return msgspec.Raw(encode({"N": format(value, "f")}))
    return msgspec.Raw(encode(typed(value)))
