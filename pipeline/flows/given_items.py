"""Items of reference tables and topics out of files, for flows that are only looked at: `TABLE.jsonl`, golden files.

Of a table each is an item in typed JSON, its key attributes first. Of a topic (`topic:NAME`) each is
`{"key": "eu", "value": {...}}`: the key as text, the value in plain JSON, as on the topic; null: there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from models.attributes import normal, typed_item
from models.change import canonical
from pipeline.errors import UsageError
from pipeline.files import exact_json
from pipeline.files.content import content
from pipeline.settings.enrich import TOPIC
from pipeline.steps.enrich import Lookup

HINT = "docs/how-to/test-flows.md"
KEY_TAGS = {"S", "N", "B"}
"""Types of key attributes."""
encode = msgspec.json.Encoder(decimal_format="number").encode


def read_items(file: Path) -> list[Any]:
    """Return the rows of TABLE.jsonl; raise UsageError that names the line of one that is none."""
    rows = []
    for number, line in enumerate(content(file).splitlines(), 1):
        if line.strip():
            try:
                rows.append((f"{file}:{number}", exact_json.loads(line)))
            except ValueError as error:
                raise _wrong(f"{file}:{number}", file.stem, error) from error
    return checked(file.stem, rows)


def checked(reference: str, rows: Iterable[tuple[str, Any]]) -> list[Any]:
    """Return rows that were given with their places; raise UsageError that names the place of one that is none."""
    found = []
    check = _check_pair if reference.startswith(TOPIC) else _check_item
    for place, row in rows:
        try:
            check(row)
        except ValueError as error:
            raise _wrong(place, reference, error) from error
        found.append(row)
    return found


def _wrong(place: str, reference: str, error: Exception) -> UsageError:
    wanted = 'an item in typed JSON, its key first: {"customer_id": {"S": "c-1"}, ...}'
    if reference.startswith(TOPIC):
        wanted = 'a key and a value of the topic: {"key": "eu", "value": {"name": "Europe"}}'
    return UsageError(f"{place}: {error}; expected {wanted}", hint=HINT)


def _check_item(row: Any) -> None:
    check_attributes(row)
    if not _could_be_key(next(iter(row.values()))):
        raise ValueError(f"{next(iter(row))} is not a key attribute, which is text, a number or binary")


def check_attributes(row: Any) -> None:
    """Raise ValueError when something is not an item in typed JSON."""
    if not isinstance(row, dict) or not row:
        raise ValueError("this is not an object with attributes")
    for name, value in row.items():
        try:
            normal(value)
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"the value of {name} is not of a type of DynamoDB") from error


def _check_pair(row: Any) -> None:
    if not isinstance(row, dict) or row.keys() != {"key", "value"} or not isinstance(row["key"], str):
        raise ValueError("this is not a key, as text, and a value")
    if row["value"] is not None:
        typed_item(encode(row["value"]))


def _could_be_key(value: Mapping[str, Any]) -> bool:
    return value.keys() <= KEY_TAGS and all(isinstance(inner, str) for inner in value.values())


def finder(reference: str, rows: Sequence[Any]) -> Lookup:
    """Return what finds items by a reference key: any attribute that could be the table's key, or the topic's key.

    Of several the first.
    """
    if reference.startswith(TOPIC):
        return _of_topic(rows).get
    return {
        canonical(value): encode(item) for item in reversed(rows) for value in item.values() if _could_be_key(value)
    }.get


def _of_topic(rows: Sequence[Any]) -> dict[bytes, bytes]:
    return {row["key"].encode(): typed_item(encode(row["value"])) for row in rows if row["value"] is not None}


def own_key_finder(rows: Sequence[Any]) -> Lookup:
    """Return what finds the first of a few items that has all attributes of an item key."""

    def find(key: bytes) -> bytes | None:
        wanted = msgspec.json.decode(key).items()
        return next((encode(item) for item in rows if wanted <= item.items()), None)

    return find


def by_key(reference: str, rows: Sequence[Any]) -> dict[bytes, bytes]:
    """Return items by their key, each once, as SQL sees them: the first attribute, or with a sort key the first two.

    A table with a sort key is known by items whose first attributes are equal.
    """
    if reference.startswith(TOPIC):
        return _of_topic(rows)
    items = {canonical(next(iter(item.values()))): encode(item) for item in rows}
    if len(items) == len(rows):
        return items
    return {canonical(dict(islice(item.items(), 2))): encode(item) for item in rows}
