"""Avro: the schema of a shape, and an encoder made for it. Pure.

All members are unions with null, which is their default. Numbers are `decimal(38, 9)`, as BigQuery's NUMERIC, and exact: one
that does not fit conflicts with the schema. A wide member has a third branch, text. The encoder is ours because fastavro takes
three to six times as long for nullable decimals; a property test reads what it writes with fastavro.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Any

import msgspec

from pipeline.steps.formats.names import escaped_full, escaped_name, original_full
from pipeline.steps.formats.shape import ConflictError, Document, Field, Kind, Shape, kind_of
from pipeline.steps.plain import NONE, Tagged, encode, untagged

PRECISION, SCALE = 38, 9
DECIMAL: dict[str, Any] = {"type": "bytes", "logicalType": "decimal", "precision": PRECISION, "scale": SCALE}
LIMIT = 10**PRECISION
TYPES: dict[Kind, Any] = {
    "string": "string",
    "decimal": DECIMAL,
    "boolean": "boolean",
    "bytes": "bytes",
    "json": "string",
    "long": "long",
    "strings": {"type": "array", "items": "string"},
    "decimals": {"type": "array", "items": DECIMAL},
    "byteses": {"type": "array", "items": "bytes"},
}
_decode_text = msgspec.json.Decoder(str).decode
Write = Callable[[list[bytes], Any], None]


def schema(shape: Shape) -> str:
    """Return the schema of a shape, as JSON."""
    return json.dumps(_record(shape, set()), separators=(",", ":"))


def _record(shape: Shape, known: set[str]) -> Any:
    name = escaped_full(shape.name)
    if name in known:
        return name
    known.add(name)
    # A name in no namespace begins with a dot; fastavro knows it without.
    aliases = {"aliases": [f".{escaped_name(shape.alias)}", escaped_name(shape.alias)]} if shape.alias else {}
    fields = [_field(n, one, known, required=shape.required) for n, one in shape.fields.items()]
    return {"type": "record", "name": name, **aliases, "fields": fields}


def _field(name: str, one: Field, known: set[str], *, required: bool) -> dict[str, Any]:
    kind: Any = TYPES[one.kind] if one.shape is None else _record(one.shape, known)
    if required:
        return {"name": escaped_name(name), "type": kind, "attribute": name, "kind": one.kind}
    wide = ["string"] if one.wide and kind != "string" else []
    found = {"name": escaped_name(name), "type": ["null", kind, *wide], "default": None}
    return {**found, "attribute": name, "kind": one.kind} | ({"wide": True} if one.wide else {})


def parse(text: str) -> Shape:
    """Return the shape of a schema that was made here; raise ValueError when it was not."""
    try:
        return _parsed(json.loads(text), {}, "")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"the schema was not made by Headwater: {error!r}") from error


def _parsed(record: dict[str, Any], known: dict[str, Shape], outside: str) -> Shape:
    """Return the shape of a record; a registry may have put what is before the last dot of its name into its namespace."""
    name = record["name"]
    space = name.rpartition(".")[0] if "." in name else record.get("namespace", outside)
    full = _full(name, space)
    shape = known[full] = Shape(original_full(full), changed=False, alias=_alias(record))
    for number, one in enumerate(record["fields"], 1):
        kind, inner = one["kind"], None
        if kind == "record":
            of = one["type"][1]
            inner = known[_full(of, space)] if isinstance(of, str) else _parsed(of, known, space)
        shape.fields[one["attribute"]] = Field(kind, number, inner, wide=one.get("wide", False))
    shape.required = bool(shape.fields) and not any(isinstance(one["type"], list) for one in record["fields"])
    return shape


def _full(name: str, space: str) -> str:
    return name if "." in name or not space else f"{space}.{name}"


def _alias(record: dict[str, Any]) -> str:
    """Return what a record was called before; a registry may have left out the dot, or put a namespace before it."""
    (alias, *_) = record.get("aliases") or [""]
    return original_full(alias.rpartition(".")[2])


def encoder(shape: Shape) -> Callable[[Document], bytes]:
    """Return what encodes documents that fit a shape as it is now; it raises ConflictError for a number that does not."""
    write = _writer(shape)

    def encode_document(document: Document) -> bytes:
        out: list[bytes] = []
        write(out, document)
        return b"".join(out)

    return encode_document


def _writer(shape: Shape) -> Write:
    fields = [(name, _member(shape.name, name, one), one.kind, one.wide) for name, one in shape.fields.items()]

    def write(out: list[bytes], document: Document) -> None:
        append = out.append
        for name, member, kind, wide in fields:
            value = document.get(name)
            if value is None:
                append(b"\x00")
            elif wide:
                _write_wide(out, member, kind, value)
            else:
                member(out, value)

    return write


def key_encoder(shape: Shape) -> Callable[[Document], bytes]:
    """Return what encodes keys: their members are always there, and no unions."""
    members = [(name, _member(shape.name, name, one)) for name, one in shape.fields.items()]

    def encode_key(document: Document) -> bytes:
        out: list[bytes] = []
        for name, member in members:
            member(out, document[name])
        return b"".join(one[1:] for one in out)  # without the branch

    return encode_key


def fitting_encoder(shape: Shape) -> Callable[[Document], bytes | None]:
    """Return what encodes items that have no members but those of a shape, and these of its kinds; None for others.

    What it gives is what `encoder` gives of them, in half the time: nothing has to be asked of the shape before.
    """
    if any(field.wide or field.shape is not None for field in shape.fields.values()):
        return lambda document: None
    fields = [(name, one.kind, _member(shape.name, name, one)) for name, one in shape.fields.items()]
    known, place = shape.fields.keys(), f"{shape.name}: an attribute"

    def encode_document(document: Document) -> bytes | None:
        out: list[bytes] = []
        append, get, left = out.append, document.get, len(document)
        for name, kind, member in fields:
            value = get(name)
            if value is None:
                append(b"\x00")
                continue
            left -= 1
            if (raw := value.text) is not NONE:
                if kind != "string":
                    return None
                text = bytes(raw)
                text = text[1:-1] if b"\\" not in text else _text(raw)
                append(_TEXTS[size] if (size := len(text)) < len(_TEXTS) else b"\x02" + length(size))
                append(text)
            elif kind == "decimal" and (number := value.number) is not None:
                append(b"\x02" + decimal(number, place))
            elif (own := kind_of(value)) is None:
                append(b"\x00")
            elif own == kind:
                member(out, value)
            else:
                return None
        if left and any(kind_of(document[name]) is not None for name in document.keys() - known):
            return None  # NULL says nothing about its kind, and waits for its place in the schema
        return b"".join(out)

    return encode_document


def _write_wide(out: list[bytes], member: Write, kind: Kind, value: Any) -> None:
    own = kind_of(value) if isinstance(value, Tagged) else kind
    if own is None or own == kind:
        before = len(out)
        try:
            member(out, value)
        except ConflictError:
            del out[before:]
        else:
            return
    text = value.number.encode() if value.number is not None else encode(untagged(value))
    if value.text is not NONE:
        text = _text(value.text)
    # A string is a branch of its own, except where the member is text already.
    out.append((b"\x02" if kind in {"string", "json"} else b"\x04") + length(len(text)) + text)


def _member(record: str, name: str, one: Field) -> Write:
    """Return what writes a value of a member, its branch included."""
    if one.shape is not None:
        inner = _writer(one.shape)

        def write_record(out: list[bytes], value: Any) -> None:
            out.append(b"\x02")
            inner(out, value)

        return write_record
    return _WRITERS[one.kind](f"{record}: the attribute {name}")


def _strings(place: str) -> Write:
    def write(out: list[bytes], value: Any) -> None:
        if isinstance(value, str):
            text = value.encode()
        elif value.text is NONE:  # NULL
            out.append(b"\x00")
            return
        else:
            text = _text(value.text)
        out.append(b"\x02" + length(len(text)) + text)

    return write


def _decimals(place: str) -> Write:
    def write(out: list[bytes], value: Any) -> None:
        if value.number is None:
            out.append(b"\x00")
        else:
            out.append(b"\x02" + decimal(value.number, place))

    return write


def _simple(write_value: Callable[[Any, str], bytes | None]) -> Callable[[str], Write]:
    def make(place: str) -> Write:
        def write(out: list[bytes], value: Any) -> None:
            found = write_value(value, place)
            out.append(b"\x00" if found is None else b"\x02" + found)

        return write

    return make


def _array(items: list[bytes]) -> bytes:
    return length(len(items)) + b"".join(items) + b"\x00" if items else b"\x00"


def _content(content: bytes) -> bytes:
    return length(len(content)) + content


def _boolean(value: Any, place: str) -> bytes | None:
    return None if value.boolean is None else b"\x01" if value.boolean else b"\x00"


def _bytes(value: Any, place: str) -> bytes | None:
    return None if value.binary is NONE else _content(base64.b64decode(_text(value.binary)))


def _json(value: Any, place: str) -> bytes | None:
    return None if value.null is not None else _content(encode(untagged(value)))


def _long(value: Any, place: str) -> bytes | None:
    return length(value)


def _text_set(value: Any, place: str) -> bytes | None:
    return None if value.texts is None else _array([_content(text.encode()) for text in sorted(value.texts)])


def _number_set(value: Any, place: str) -> bytes | None:
    if value.numbers is None:
        return None
    return _array([decimal(one, place) for one in sorted(value.numbers, key=Decimal)])


def _bytes_set(value: Any, place: str) -> bytes | None:
    if value.binaries is None:
        return None
    return _array([_content(base64.b64decode(binary)) for binary in sorted(value.binaries)])


_WRITERS: dict[Kind, Callable[[str], Write]] = {
    "string": _strings,
    "decimal": _decimals,
    "boolean": _simple(_boolean),
    "bytes": _simple(_bytes),
    "json": _simple(_json),
    "long": _simple(_long),
    "strings": _simple(_text_set),
    "decimals": _simple(_number_set),
    "byteses": _simple(_bytes_set),
}


def _text(raw: msgspec.Raw) -> bytes:
    """Return the text of a JSON string in UTF-8."""
    text = bytes(raw)
    return _decode_text(text).encode() if b"\\" in text else text[1:-1]


def decimal(text: str, place: str) -> bytes:
    """Return a number as an Avro decimal of precision 38 and scale 9, exact; raise ConflictError when it does not fit."""
    whole, _, rest = text.partition(".")
    if len(rest) <= SCALE and len(whole) <= PRECISION - SCALE and (whole + rest).lstrip("-").isdecimal():
        unscaled: int = int(whole + rest) * _TENS[SCALE - len(rest)]
    else:
        unscaled = _scaled(text, place)
    size = (unscaled.bit_length() + 8) >> 3
    return _LENGTHS[size] + unscaled.to_bytes(size, "big", signed=True)


def _scaled(text: str, place: str) -> int:
    try:
        exact = Decimal(text).scaleb(SCALE, _WIDE)
        unscaled = int(exact)
    except (ArithmeticError, ValueError) as error:
        raise ConflictError(f"{place}: {text!r} is not a number") from error
    if unscaled != exact or not -LIMIT < unscaled < LIMIT:
        raise ConflictError(f"{place} is decimal({PRECISION}, {SCALE}) in the schema, which cannot hold this number")
    return unscaled


def widen(shape: Shape, document: Document) -> None:
    """Widen the members whose numbers in a document do not fit."""
    for name, value in document.items():
        one = shape.fields.get(name)
        if one is None or value is None:
            continue
        if one.shape is not None:
            widen(one.shape, value)
        elif isinstance(value, Tagged) and not one.wide:
            try:
                for number in [value.number] if value.number is not None else value.numbers or []:
                    decimal(number, name)
            except ConflictError:
                one.wide = shape.changed = True


def length(number: int) -> bytes:
    """Return a whole number as Avro's long: zigzag, seven bits a byte."""
    if 0 <= number < len(_LENGTHS):
        return _LENGTHS[number]
    return _varint((number << 1) ^ (number >> 63))


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_LENGTHS = [_varint(number << 1) for number in range(4096)]
_TEXTS = [b"\x02" + one for one in _LENGTHS]
_TENS: list[int] = [10**n for n in range(SCALE + 1)]
_WIDE = Context(prec=400)
