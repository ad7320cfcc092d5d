"""JSON Schema: the schema of a shape; the values are the envelope's JSON. Pure."""

from __future__ import annotations

import json
from typing import Any

from pipeline.steps.formats.shape import Field, Kind, Shape
from pipeline.steps.forms import Numbers

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


AS_TEXT: dict[Kind, dict[str, Any]] = {
    **TYPES,
    "decimal": TYPES["string"],
    "decimals": TYPES["strings"],
}
"""Where the envelope has numbers as strings."""


def schema(shape: Shape, numbers: Numbers = "exact") -> str:
    """Return the schema of a shape, as JSON.

    Other members than those named may be null and nothing else, so that a newer schema reads what an older one allowed: were
    objects open, a member that is new could have been anything, and Confluent's registry refuses it for that.
    """
    types = TYPES if numbers == "exact" else AS_TEXT
    return json.dumps(
        {"$schema": "http://json-schema.org/draft-07/schema#", **_record(shape, types)}, separators=(",", ":")
    )


def _record(shape: Shape, types: dict[Kind, dict[str, Any]]) -> dict[str, Any]:
    properties = {name: _field(one, types) for name, one in shape.fields.items()}
    others = {"type": "null"}
    return {"title": shape.name, "type": "object", "properties": properties, "additionalProperties": others}


def _field(one: Field, types: dict[Kind, dict[str, Any]]) -> dict[str, Any]:
    mark: dict[str, Any] = {"kind": one.kind} | ({"wide": True} if one.wide else {})
    if one.shape is not None:
        return {"oneOf": [{"type": "null"}, _record(one.shape, types)], **mark}
    if one.wide or one.kind == "json":
        return mark
    return {"oneOf": [{"type": "null"}, types[one.kind]], **mark}


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
