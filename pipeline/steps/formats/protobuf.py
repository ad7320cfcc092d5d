"""Protobuf: the schema of a shape as a .proto file, and a message class made for it. Pure.

Numbers are text with all their digits (Protobuf has no decimal), lists and maps are JSON text; members keep their field
numbers for ever. Text takes values of any kind, so text members are wide by nature; a wide member of another kind has a second
field, `<name>_text`, whose number is 10,000 more.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, cast

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pipeline.steps.formats.names import escaped
from pipeline.steps.formats.shape import Document, Field, Kind, Shape, kind_of
from pipeline.steps.plain import NONE, Tagged, encode, untagged

WIDER = 10_000
TYPES: dict[Kind, str] = {
    "string": "optional string",
    "decimal": "optional string",
    "boolean": "optional bool",
    "bytes": "optional bytes",
    "json": "optional string",
    "long": "optional int64",
    "strings": "repeated string",
    "decimals": "repeated string",
    "byteses": "repeated bytes",
}
LINE = re.compile(r"^\s*(?:optional|repeated) \S+ (\S+) = (\d+)(?: \[[^\]]*\])?; // (\w+)( wide)? (\".*\")$")
MESSAGE = re.compile(r"^\s*message (\S+) \{ // (.*)$")
INDEX = b"\x00"
"""Which message of the file it is: the first."""
Proto = descriptor_pb2.FieldDescriptorProto


def schema(shape: Shape) -> str:
    """Return the schema of a shape, as a .proto file."""
    return 'syntax = "proto3";\n\n' + "\n".join(_message(shape, set(), "")) + "\n"


def _message(shape: Shape, known: set[str], indent: str) -> list[str]:
    known.add(shape.name)
    lines = [f"{indent}message {escaped(shape.name)} {{ // {msgspec.json.encode(shape.name).decode()}"]
    for one in shape.fields.values():
        if one.shape is not None and one.shape.name not in known:
            lines += _message(one.shape, known, f"{indent}  ")
    for name, one in shape.fields.items():
        of = f"optional {escaped(one.shape.name)}" if one.shape is not None else TYPES[one.kind]
        wide = " wide" if one.wide else ""
        said = msgspec.json.encode(name).decode()
        lines.append(f"{indent}  {of} {escaped(name)} = {_number(one.number)}; // {one.kind}{wide} {said}")
        if one.wide and not _is_text(one):
            lines.append(f"{indent}  optional string {escaped(name)}_text = {_number(one.number + WIDER)};")
    return [*lines, f"{indent}}}"]


def _number(number: int) -> int:
    return number + 1_000 if number >= 19_000 else number  # 19,000 to 19,999 are Protobuf's own


def _is_text(one: Field) -> bool:
    return one.kind in {"string", "decimal", "json"}


def parse(text: str) -> Shape:
    """Return the shape of a schema that was made here; raise ValueError when it was not."""
    open_shapes: list[Shape] = []
    known: dict[str, Shape] = {}
    first: Shape | None = None
    for line in text.splitlines():
        if (match := MESSAGE.match(line)) is not None:
            shape = known[match[1]] = Shape(msgspec.json.decode(match[2], type=str), changed=False)
            first = first or shape
            open_shapes.append(shape)
        elif line.strip() == "}":
            open_shapes.pop()
        elif (match := LINE.match(line)) is not None:
            name = msgspec.json.decode(match[5], type=str)
            kind = cast("Kind", match[3])
            inner = known[line.split()[1]] if kind == "record" else None
            fields = open_shapes[-1].fields
            fields[name] = Field(kind, len(fields) + 1, inner, wide=bool(match[4]))
    if first is None:
        raise ValueError("the schema was not made by Headwater: there is no message in it")
    return first


def message_class(shape: Shape) -> type[Any]:
    """Return the class of the messages of a shape."""
    file = descriptor_pb2.FileDescriptorProto(name="document.proto", syntax="proto3")
    _describe(file.message_type.add(), shape, f".{escaped(shape.name)}", {})
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made: type[Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName(escaped(shape.name)))
    return made


def _describe(message: Any, shape: Shape, path: str, known: dict[str, str]) -> None:
    message.name = escaped(shape.name)
    known[shape.name] = path
    for one in shape.fields.values():
        if one.shape is not None and one.shape.name not in known:
            _describe(message.nested_type.add(), one.shape, f"{path}.{escaped(one.shape.name)}", known)
    for name, one in shape.fields.items():
        label, of = ("optional", "") if one.shape is not None else TYPES[one.kind].split()
        added = message.field.add(name=escaped(name), number=_number(one.number))
        added.label = Proto.LABEL_REPEATED if label == "repeated" else Proto.LABEL_OPTIONAL
        if one.shape is not None:
            added.type, added.type_name = Proto.TYPE_MESSAGE, known[one.shape.name]
        else:
            added.type = Proto.Type.Value(f"TYPE_{of.upper()}")
        if label == "optional":
            _presence(message, added)
        if one.wide and not _is_text(one):
            text = message.field.add(name=f"{escaped(name)}_text", number=_number(one.number + WIDER))
            text.type, text.label = Proto.TYPE_STRING, Proto.LABEL_OPTIONAL
            _presence(message, text)


def _presence(message: Any, one: Any) -> None:
    """Make a field optional as proto3 has it: it is known whether it is there."""
    one.proto3_optional = True
    one.oneof_index = len(message.oneof_decl)
    message.oneof_decl.add(name=f"_{one.name}")


def encoder(shape: Shape) -> Callable[[Document], bytes]:
    """Return what encodes documents that fit a shape as it is now."""
    made = message_class(shape)
    return lambda document: (
        INDEX + cast("bytes", made(**_values(shape, document)).SerializeToString(deterministic=True))
    )


def _values(shape: Shape, document: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        if value is None or (isinstance(value, Tagged) and value.null is not None):
            continue
        one = shape.fields[name]
        if one.shape is not None:
            found[escaped(name)] = _values(one.shape, value)
        elif not isinstance(value, Tagged):
            found[escaped(name)] = value
        elif kind_of(value) == one.kind:
            found[escaped(name)] = _value(value)
        else:
            found[escaped(name) if _is_text(one) else f"{escaped(name)}_text"] = _as_text(value)
    return found


def _value(value: Tagged) -> Any:
    if value.text is not NONE:
        return msgspec.json.decode(value.text)
    if value.number is not None:
        return value.number
    if value.boolean is not None:
        return value.boolean
    if value.binary is not NONE:
        return base64.b64decode(msgspec.json.decode(value.binary))
    if value.texts is not None:
        return sorted(value.texts)
    if value.numbers is not None:
        return sorted(value.numbers, key=Decimal)
    if value.binaries is not None:
        return [base64.b64decode(one) for one in sorted(value.binaries)]
    return encode(untagged(value)).decode()


def _as_text(value: Tagged) -> str:
    if value.text is not NONE:
        return cast("str", msgspec.json.decode(value.text))
    return value.number if value.number is not None else encode(untagged(value)).decode()
