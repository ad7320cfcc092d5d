"""JSON Schema: the schema of a shape; the values are the envelope's JSON. Pure.

Records with Debezium's names are made for readers of Kafka Connect, which know types that JSON lacks: their schemas say them as
Confluent's converter does (`connect.type`), and lists and maps are JSON text, as in the other formats.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from pipeline.steps.formats.avro import PRECISION, SCALE
from pipeline.steps.formats.shape import Document, Field, Kind, Shape, kind_of
from pipeline.steps.forms import Numbers
from pipeline.steps.plain import Plain, Tagged, as_text, encode, exact, is_number, untagged

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
AS_TEXT: dict[Kind, dict[str, Any]] = {"decimal": TYPES["string"], "decimals": TYPES["strings"]}
"""Where the envelope has numbers as strings."""
DECIMAL: dict[str, Any] = {
    "type": "number",
    "title": "org.apache.kafka.connect.data.Decimal",
    "connect.type": "bytes",
    "connect.version": 1,
    "connect.parameters": {"scale": str(SCALE), "connect.decimal.precision": str(PRECISION)},
}
BYTES: dict[str, Any] = {**TYPES["bytes"], "connect.type": "bytes"}
CONNECT: dict[Kind, dict[str, Any]] = {
    **TYPES,
    "decimal": DECIMAL,
    "decimals": {"type": "array", "items": DECIMAL},
    "json": TYPES["string"],
    "long": {"type": "integer", "connect.type": "int64"},
    "bytes": BYTES,
    "byteses": {"type": "array", "items": BYTES},
}
"""As readers of Kafka Connect know them."""
ZEROS = "0" * SCALE


def schema(shape: Shape, numbers: Numbers = "exact") -> str:
    """Return the schema of a shape, as JSON.

    Other members than those named may be null and nothing else, so that a newer schema reads what an older one allowed: were
    objects open, a member that is new could have been anything, and Confluent's registry refuses it for that.
    """
    types = CONNECT if shape.is_debezium else TYPES
    if numbers == "string":
        types = {**types, **AS_TEXT}
    return json.dumps(
        {"$schema": "http://json-schema.org/draft-07/schema#", **_record(shape, types)}, separators=(",", ":")
    )


def _record(shape: Shape, types: dict[Kind, dict[str, Any]]) -> dict[str, Any]:
    properties = {name: _field(one, types, required=shape.required) for name, one in shape.fields.items()}
    if types["json"]:  # members in their order: others take them in any
        properties = {name: {**one, "connect.index": n} for n, (name, one) in enumerate(properties.items())}
    others = {"type": "null"}
    found = {"title": shape.name, "type": "object", "properties": properties, "additionalProperties": others}
    return {**found, "required": list(properties)} if shape.required else found


def _field(one: Field, types: dict[Kind, dict[str, Any]], *, required: bool) -> dict[str, Any]:
    mark: dict[str, Any] = {"kind": one.kind} | ({"wide": True} if one.wide else {})
    if one.shape is not None:
        return {"oneOf": [{"type": "null"}, _record(one.shape, types)], **mark}
    if one.wide or not types[one.kind]:
        return mark
    return {**types[one.kind], **mark} if required else {"oneOf": [{"type": "null"}, types[one.kind]], **mark}


def open_documents(shape: Shape) -> None:
    """Let the lists and maps that a schema knows be what they were before it got Debezium's names: anything, not text."""
    for field in shape.fields.values():
        if field.shape is not None:
            open_documents(field.shape)
        field.wide |= field.kind == "json"


def encoder(shape: Shape, numbers: Numbers = "exact") -> Callable[[Document], bytes]:
    """Return what encodes documents of a record with Debezium's names, as its schema says.

    Numbers have the nine places of the decimal that the schema names, so that readers take them for it as they are; those with
    more keep them all.
    """
    members = _members(shape, numbers)
    return lambda document: encode(members(document))


def _members(shape: Shape, numbers: Numbers) -> Callable[[Document], dict[str, Plain]]:
    number: Callable[[str], Plain] = as_text if numbers == "string" else _padded
    wide = {name for name, one in shape.fields.items() if one.wide}
    inner = {name: _members(one.shape, numbers) for name, one in shape.fields.items() if one.shape is not None}

    def members(document: Document) -> dict[str, Plain]:
        found: dict[str, Plain] = {}
        for name, value in document.items():
            if not isinstance(value, Tagged):
                found[name] = value if value is None or name not in inner else inner[name](value)
            elif name in wide:
                found[name] = untagged(value, numbers)
            elif value.number is not None:
                found[name] = number(value.number)
            elif value.numbers is not None:
                found[name] = [number(one) for one in sorted(value.numbers, key=Decimal)]
            elif kind_of(value) == "json":
                found[name] = encode(untagged(value)).decode()
            else:
                found[name] = untagged(value)
        return found

    return members


def _padded(text: str) -> Plain:
    """Return a number as JSON's, with nine places where it has at most nine."""
    whole, _, places = text.partition(".")
    if len(places) > SCALE or not is_number(text) or not (whole + places).lstrip("-").isdecimal():
        return exact(text)
    return msgspec.Raw(f"{whole}.{places}{ZEROS[len(places) :]}".encode())


def parse(text: str) -> Shape:
    """Return the shape of a schema that was made here; raise ValueError when it was not."""
    try:
        return _parsed(json.loads(text), {})
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the schema was not made by Headwater: {error!r}") from error


def _parsed(record: dict[str, Any], known: dict[str, Shape]) -> Shape:
    if (same := known.get(record["title"])) is not None:
        return same
    shape = known[record["title"]] = Shape(record["title"], changed=False, required="required" in record)
    for number, (name, one) in enumerate(record["properties"].items(), 1):
        inner = _parsed(one["oneOf"][1], known) if one["kind"] == "record" else None
        shape.fields[name] = Field(one["kind"], number, inner, wide=one.get("wide", False))
    return shape
