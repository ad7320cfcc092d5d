"""Enrichment in SQL: a query of DuckDB over the changes of a batch. Pure: nothing but what is in memory can be read.

The relation `changes`: `id`, `event_id`, `op`, `table_name`, `ts_us`, and as JSON `key`, `before`, `after`, `enriched`.
Reference tables and topics are relations of their names: `key` (of a table its one key attribute, or all of them) and
`item`, both as JSON. What the query selects beside `id` is added to the change of that id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import duckdb
import msgspec
import pyarrow as pa

from models.attributes import typed
from pipeline.steps.event import NULL, Event, Step
from pipeline.steps.plain import encode, known_form, plain_added, plain_json, plain_value

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
INEXACT = {"uhugeint", "bignum", "bit", "interval", "time with time zone", "timestamp_ns"}
"""Types of DuckDB of which something is lost on the way here: refused before, not written wrong."""
NUMBERS: Final = "shared"
"""DuckDB makes doubles of JSON's fractions: what no double has is text; `->>` gives it, and CAST takes it, with all digits."""
REFERENCE = pa.schema([("key", pa.string()), ("item", pa.string())])


class ReferenceRows(Protocol):
    """A reference table: its items, by key."""

    def version(self) -> object:
        """Return what is another when the items are others."""

    def rows(self) -> Sequence[tuple[bytes, bytes]]:
        """Return keys and items, in typed JSON."""


class _Relation(NamedTuple):
    """A reference table or topic, and how its keys become JSON."""

    rows: ReferenceRows
    key: Callable[[bytes], str]


class QueryError(ValueError):
    """A query that DuckDB does not take, or whose answer says nothing of changes."""


def compile_query(
    query: str, tables: Mapping[str, ReferenceRows], topics: Mapping[str, ReferenceRows] = MappingProxyType({})
) -> Step:
    """Return the step that runs a query; raise QueryError when it cannot be run, or its columns cannot be added as they are.

    The keys of `tables` are key attributes in typed JSON, those of `topics` are text.
    """
    relations = {name: _Relation(rows, _key) for name, rows in tables.items()}
    relations |= {name: _Relation(rows, _text) for name, rows in topics.items()}
    database = _Database(query, relations)
    try:
        database.run(_arrow([], frozenset()))
        _check(database.columns())
        wanted = _looked_at(query + database.plan())
    except duckdb.Error as error:
        raise QueryError(str(error).splitlines()[0]) from error

    def step(events: Sequence[Event]) -> None:
        if not events:
            return
        try:
            answer = database.run(_arrow(events, wanted))
            _take(answer, events)
        except (duckdb.Error, pa.ArrowException, ValueError, OverflowError) as error:
            if len(events) == 1:
                events[0].error = QueryError(str(error).splitlines()[0])
                return
            # Which of them is at fault shows when they are given one by one.
            for event in events:
                step([event])

    return step


def _check(columns: Sequence[tuple[str, Any]]) -> None:
    """Raise QueryError when the columns of an answer say nothing of changes, or cannot be added as they are."""
    names = [name for name, _ in columns]
    if "id" not in names:
        raise QueryError("the query must select id, of the relation changes")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise QueryError(f"the query selects {', '.join(twice)} more than once: name each with AS")
    for name, kind in columns:
        if name == "id" and kind.id != "bigint":
            raise QueryError(f"id is a {kind}: select the id of the relation changes as it is")
        if (odd := _inexact(kind)) is not None:
            raise QueryError(f"{name} is a {odd}, which cannot be added exactly: CAST it to VARCHAR")


def _inexact(kind: Any) -> str | None:
    """Return the type within a type of DuckDB that cannot be carried over; None when all can."""
    if kind.id in INEXACT:
        return str(kind)
    if kind.id not in {"list", "array", "struct", "map", "union"}:
        return None
    parts = [part for _, part in kind.children if hasattr(part, "id")]  # of an array, its size is among them
    return next((odd for part in parts if (odd := _inexact(part)) is not None), None)


class _Database:
    """DuckDB in this process, shut in: no files, no network, one thread."""

    def __init__(self, query: str, relations: Mapping[str, _Relation]) -> None:
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": "1",
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
        }
        self._connection = duckdb.connect(":memory:", config=config)
        self._connection.execute("SET TimeZone = 'UTC'")
        self._query, self._relations = query, relations
        self._versions: dict[str, object] = {}

    def run(self, changes: pa.Table) -> pa.Table:
        """Run the query over changes."""
        for name, relation in self._relations.items():
            if (version := relation.rows.version()) != self._versions.get(name, self):
                self._versions[name] = version
                self._connection.register(name, _reference(relation))
        self._connection.register("changes", changes)
        return self._connection.execute(self._query).to_arrow_table()

    def columns(self) -> list[tuple[str, Any]]:
        """Return names and types of what the query gave last."""
        return [(name, kind) for name, kind, *_ in self._connection.description or ()]

    def plan(self) -> str:
        """Return DuckDB's plan of the query: it names the columns that are read."""
        return "".join(
            str(part) for row in self._connection.execute(f"EXPLAIN {self._query}").fetchall() for part in row
        )


def _reference(relation: _Relation) -> pa.Table:
    rows = relation.rows.rows()
    keys = [relation.key(key) for key, _ in rows]
    items = [plain_json(item, NUMBERS).decode() for _, item in rows]
    return pa.table([pa.array(keys, pa.string()), pa.array(items, pa.string())], schema=REFERENCE)


def _key(key: bytes) -> str:
    try:
        return encode(plain_value(key, NUMBERS)).decode()
    except ValueError:  # not one attribute: all of a table with a sort key
        return plain_json(key, NUMBERS).decode()


def _text(key: bytes) -> str:
    return encode(key.decode(errors="replace")).decode()


def _looked_at(text: str) -> frozenset[str]:
    """Return the columns that a query, or its plan, names: the others are not made, most of the time goes to them.

    The plan has those that the query means without naming them: by `*`, `COLUMNS(...)`, the row as a whole.
    """
    return frozenset(name for name in SCHEMA.names if re.search(rf"\b{name}\b", text, re.IGNORECASE))


def _arrow(events: Sequence[Event], wanted: frozenset[str]) -> pa.Table:
    count = len(events)
    arrays = [
        pa.array(map(COLUMNS[field.name], events) if field.name in wanted else [None] * count, field.type, size=count)
        for field in SCHEMA
        if field.name != "id"
    ]
    return pa.table([pa.array(range(count), pa.int64()), *arrays], schema=SCHEMA)


def _after(event: Event) -> str | None:
    if (image := event.after_json) is None:
        return None
    written = known_form(image, NUMBERS)
    if written is None:
        return plain_json(image, NUMBERS).decode()
    event.plain_after = written  # no number in it is text: the envelope may need it as well
    return written.decode()


def _json(image: bytes | None) -> str | None:
    return None if image is None else plain_json(image, NUMBERS).decode()


COLUMNS: Mapping[str, Callable[[Event], Any]] = {
    "event_id": lambda event: event.change.event_id,
    "op": lambda event: event.change.op,
    "table_name": lambda event: event.change.table,
    "ts_us": lambda event: event.change.ts_us,
    "key": lambda event: _json(bytes(event.change.body.keys)),
    "before": lambda event: _json(event.before_json),
    "after": _after,
    "enriched": lambda event: encode(plain_added(event.added, NUMBERS)).decode() if event.added else None,
}


def _take(answer: pa.Table, events: Sequence[Event]) -> None:
    """Add what the query gave; nothing is changed when the answer is bad."""
    ids = answer.column("id").to_pylist()
    if len(set(ids)) != len(ids):
        raise QueryError("the query gives more than one row for a change: group by id")
    if not set(ids) <= set(range(len(events))):
        raise QueryError("the query gives ids that no change has")
    others = [name for name in answer.column_names if name != "id"]
    values = [_typed(answer.column(name)) for name in others]
    for event in events:
        event.gone = True
    for number in ids:
        events[number].gone = False
    for name, column in zip(others, values, strict=True):
        for number, value in zip(ids, column, strict=True):
            events[number].added[name] = value


def _typed(column: pa.ChunkedArray) -> list[msgspec.Raw]:
    if pa.types.is_integer(column.type) or pa.types.is_decimal(column.type):
        return [NULL if text is None else _number(text) for text in column.cast(pa.string()).to_pylist()]
    return [msgspec.Raw(encode(typed(_python(value, column.type)))) for value in column.to_pylist()]


def _number(text: str) -> msgspec.Raw:
    """Return the number that Arrow has written, without the zeros at its end: DECIMAL(38, 2) gives 2.50."""
    if "E" in text:
        text = format(Decimal(text), "f")
    return msgspec.Raw(b'{"N":"%b"}' % (text.rstrip("0").rstrip(".") if "." in text else text).encode())


def _python(value: Any, kind: pa.DataType) -> Any:
    """Return what Arrow gave as `typed` takes it: maps are dicts, dates are text, decimals without the zeros at their end."""
    if isinstance(value, Decimal):  # DECIMAL(38, 2) gives 2.50; `normalize` would round it to 28 digits
        text = format(value, "f")
        return Decimal(text.rstrip("0").rstrip(".") if "." in text else text)
    if isinstance(value, date | time) and not isinstance(value, datetime):
        return value.isoformat()
    if value is None or not pa.types.is_nested(kind):
        return value
    if pa.types.is_map(kind):
        return {name: _python(one, kind.item_type) for name, one in value}
    if pa.types.is_struct(kind):
        return {part.name: _python(value[part.name], part.type) for part in kind}
    if pa.types.is_union(kind):
        return value
    return [_python(one, kind.value_type) for one in value]
