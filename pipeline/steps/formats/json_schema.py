"""JSON Schema: the schema of a shape; the values are the envelope's JSON. Pure."""

from __future__ import annotations

import json
from typing import Any

from pipeline.steps.formats.shape import Field, Kind, Shape

TYPES: dict[Kind, dict[str, Any]] = {
    "string": {"type": "string"},
    "decimal": {"type": "number"},
    "boolean": {"type": "boolean"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "json": {},
    "long": {"type": "integer"},
    "strings": {"type": "array", "items": {"type": "string"}},
    "decimals": {"type": "array", "items": {"type": "number"}},
    "byteses": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
}


def schema(shape: Shape) -> str:
    """Return the schema of a shape, as JSON. Objects are open: a newer schema reads what an older one allowed."""
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **_record(shape)}, separators=(",", ":"))


def _record(shape: Shape) -> dict[str, Any]:
    properties = {name: _field(one) for name, one in shape.fields.items()}
    return {"title": shape.name, "type": "object", "properties": properties}


def _field(one: Field) -> dict[str, Any]:
    mark: dict[str, Any] = {"kind": one.kind} | ({"wide": True} if one.wide else {})
    if one.shape is not None:
        return {"oneOf": [{"type": "null"}, _record(one.shape)], **mark}
    if one.wide or one.kind == "json":
        return mark
    return {"oneOf": [{"type": "null"}, TYPES[one.kind]], **mark}


def parse(text: str) -> Shape:
    """Return the shape of a schema that was made here; raise ValueError when it was not."""
    try:
        return _parsed(json.loads(text), {})
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the schema was not made by Headwater: {error!r}") from error


def _parsed(record: dict[str, Any], known: dict[str, Shape]) -> Shape:
    if (same := known.get(record["title"])) is not None:
        return same
    shape = known[record["title"]] = Shape(record["title"], changed=False)
    for number, (name, one) in enumerate(record["properties"].items(), 1):
        inner = _parsed(one["oneOf"][1], known) if one["kind"] == "record" else None
        shape.fields[name] = Field(one["kind"], number, inner, wide=one.get("wide", False))
    return shape
