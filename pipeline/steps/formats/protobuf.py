"""Protobuf: the schema of a shape as a .proto file, and a message class made for it. Pure.

Numbers are text with all their digits (Protobuf has no decimal), lists and maps are JSON text; members keep their field
numbers forever. Text takes values of any kind, so text members are wide by nature; a wide member of another kind has a second
field, `<name>_text`, whose number is 10,000 more. A name that another field has already gets its number, too.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, cast

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pipeline.steps.formats.names import escaped_full, escaped_name
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
FIELD = re.compile(r"(?:(?:optional|repeated) )?(\S+) (\S+) = (\d+)(?: \[[^\]]*\])?;").fullmatch
MESSAGE = re.compile(r"message (\S+) \{").fullmatch
ABOUT = re.compile(r"// (\w+)( wide)? (\".*\")").fullmatch
NAMED = re.compile(r"// (\".*\")").fullmatch
INDEX = b"\x00"
"""Which message of the file it is: the first."""
Proto = descriptor_pb2.FieldDescriptorProto


def schema(shape: Shape) -> str:
    """Return the schema of a shape, as a .proto file.

    It is written as Wire prints it, by which Confluent's registry keeps schemas: what is said of a member is before it, for
    comments at the end of a line are moved there; records within a record are behind its members.
    """
    head = 'syntax = "proto3";\n'
    if not shape.is_debezium:
        return head + "\n" + "\n".join(_message(shape, {shape.name}, "")) + "\n"
    lines = _message(shape, None, "")
    known = {shape.name}
    for inner in _inner(shape, known):
        lines += ["", *_message(inner, None, "")]
    package = escaped_full(shape.name.rpartition(".")[0])
    return f"{head}package {package};\n\n" + "\n".join(lines) + "\n"


def _message(shape: Shape, known: set[str] | None, indent: str) -> list[str]:
    """Return the lines of a message; `known`: the records that have one, those that have none are in it."""
    lines = [f"{indent}// {_said(shape.name)}", f"{indent}message {_short(shape)} {{"]
    for name, one, field, wider in _named(shape):
        of = f"optional {_short(one.shape)}" if one.shape is not None else TYPES[one.kind]
        if shape.required:
            of = of.removeprefix("optional ")
        lines.append(f"{indent}  // {one.kind}{' wide' if one.wide else ''} {_said(name)}")
        lines.append(f"{indent}  {of} {field} = {_number(one.number)};")
        if wider is not None:
            lines.append(f"{indent}  optional string {wider} = {_number(one.number + WIDER)};")
    for inner in _inner(shape, known) if known is not None else ():
        lines += ["", *_message(inner, known, f"{indent}  ")]
    return [*lines, f"{indent}}}"]


def _short(shape: Shape) -> str:
    """Return the name of a record within its package."""
    return escaped_name(shape.name.rpartition(".")[2])


def _said(name: str) -> str:
    return msgspec.json.encode(name).decode()


def _inner(shape: Shape, known: set[str]) -> Iterator[Shape]:
    """Return the records in a record that have no message yet."""
    for field in shape.fields.values():
        if field.shape is not None and field.shape.name not in known:
            known.add(field.shape.name)
            yield field.shape


def _named(shape: Shape) -> list[tuple[str, Field, str, str | None]]:
    """Return the members with the names of their fields, and of the second fields of wide ones.

    Protobuf takes no two names whose JSON names are the same (`a_b` and `aB`): the later one gets its number, too.
    """
    taken: set[str] = set()

    def free(name: str, number: int) -> str:
        while _json_name(name) in taken:
            name = f"{name}_{number}"
        taken.add(_json_name(name))
        return name

    fields = {name: free(escaped_name(name), one.number) for name, one in shape.fields.items()}
    return [
        (
            name,
            one,
            fields[name],
            free(f"{fields[name]}_text", one.number + WIDER) if one.wide and not _is_text(one) else None,
        )
        for name, one in shape.fields.items()
    ]


def _json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _number(number: int) -> int:
    return number + 1_000 if number >= 19_000 else number  # 19,000 to 19,999 are Protobuf's own


def _is_text(one: Field) -> bool:
    return one.kind in {"string", "decimal", "json"}


def parse(text: str) -> Shape:
    """Return the shape of a schema that was made here; raise ValueError when it was not."""
    open_shapes: list[Shape] = []
    known: dict[str, Shape] = {}
    records: list[tuple[Field, str]] = []
    about = ""
    try:
        for line in map(str.strip, text.splitlines()):
            if (match := MESSAGE(line)) is not None:
                shape = known[match[1]] = Shape(_original(NAMED(about)), changed=False)
                open_shapes.append(shape)
            elif line == "}":
                open_shapes.pop()
            elif (match := FIELD(line)) is not None and (said := ABOUT(about)) is not None:
                fields = open_shapes[-1].fields
                one = Field(cast("Kind", said[1]), int(match[3]), wide=said[2] is not None)
                if not line.startswith(("optional ", "repeated ")):
                    open_shapes[-1].required = True
                if one.kind == "record":
                    records.append((one, match[1]))
                elif one.kind not in TYPES:
                    raise ValueError("the schema was not made by Headwater: it has a kind of member that is not known")
                fields[msgspec.json.decode(said[3], type=str)] = one
            elif match is not None and not match[2].rstrip("_0123456789").endswith("_text"):
                raise ValueError("the schema was not made by Headwater: it does not say what its members are")
            about = line
        for one, name in records:  # a message may come after the members that are of it
            one.shape = known[name.rpartition(".")[2]]
        return next(iter(known.values()))
    except (LookupError, StopIteration, msgspec.DecodeError) as error:
        raise ValueError(f"the schema was not made by Headwater: {error!r}") from error


def _original(said: re.Match[str] | None) -> str:
    if said is None:
        raise ValueError("the schema was not made by Headwater: a message does not say what it is of")
    return msgspec.json.decode(said[1], type=str)


def message_class(shape: Shape) -> type[Any]:
    """Return the class of the messages of a shape."""
    package = escaped_full(shape.name.rpartition(".")[0]) if shape.is_debezium else ""
    file = descriptor_pb2.FileDescriptorProto(name="document.proto", syntax="proto3", package=package)
    path = f"{package}.{_short(shape)}" if package else _short(shape)
    _describe(file.message_type.add(), shape, f".{path}", {}, file if package else None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made: type[Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName(path))
    return made


def _describe(message: Any, shape: Shape, path: str, known: dict[str, str], file: Any) -> None:
    """Describe a message; those of the records in it are beside it in the file, or in it where there is none."""
    message.name = _short(shape)
    known[shape.name] = path
    for one in shape.fields.values():
        if one.shape is not None and one.shape.name not in known:
            around = path if file is None else path.rpartition(".")[0]
            inner = message.nested_type.add() if file is None else file.message_type.add()
            _describe(inner, one.shape, f"{around}.{_short(one.shape)}", known, file)
    optional = []
    for _, one, field, wider in _named(shape):
        label, of = ("optional", "") if one.shape is not None else TYPES[one.kind].split()
        added = message.field.add(name=field, number=_number(one.number))
        added.label = Proto.LABEL_REPEATED if label == "repeated" else Proto.LABEL_OPTIONAL
        if one.shape is not None:
            added.type, added.type_name = Proto.TYPE_MESSAGE, known[one.shape.name]
        else:
            added.type = Proto.Type.Value(f"TYPE_{of.upper()}")
        if label == "optional":
            optional.append(added)
        if wider is not None:
            number = _number(one.number + WIDER)
            optional.append(
                message.field.add(name=wider, number=number, type=Proto.TYPE_STRING, label=Proto.LABEL_OPTIONAL)
            )
    taken = {field.name for field in message.field}
    for added in optional:
        _presence(message, added, taken)


def _presence(message: Any, one: Any, taken: set[str]) -> None:
    """Make a field optional as proto3 has it: it is known whether it is there."""
    name = f"_{one.name}"
    while name in taken:
        name = f"X{name}"  # as protoc does, where a field is called so
    taken.add(name)
    one.proto3_optional = True
    one.oneof_index = len(message.oneof_decl)
    message.oneof_decl.add(name=name)


def encoder(shape: Shape) -> Callable[[Document], bytes]:
    """Return what encodes documents that fit a shape as it is now."""
    made, values = message_class(shape), _values(shape)
    return lambda document: INDEX + cast("bytes", made(**values(document)).SerializeToString(deterministic=True))


def _values(shape: Shape) -> Callable[[Document], dict[str, Any]]:
    """Return what makes the fields of a message of a document."""
    members = {
        name: (one.kind, field, wider or field, None if one.shape is None else _values(one.shape))
        for name, one, field, wider in _named(shape)
    }

    def values(document: Document) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in document.items():
            if value is None or (isinstance(value, Tagged) and value.null is not None):
                continue
            kind, field, wider, inner = members[name]
            if inner is not None:
                found[field] = inner(value)
            elif not isinstance(value, Tagged):
                found[field] = value
            elif kind_of(value) == kind:
                found[field] = _value(value)
            else:
                found[wider] = _as_text(value)
        return found

    return values


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
        return [base64.b64decode(binary) for binary in sorted(value.binaries)]
    return encode(untagged(value)).decode()


def _as_text(value: Tagged) -> str:
    if value.text is not NONE:
        return cast("str", msgspec.json.decode(value.text))
    return value.number if value.number is not None else encode(untagged(value)).decode()
