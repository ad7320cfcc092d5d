"""Attribute values: DynamoDB's typed JSON, compared and shown."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Context, Decimal
from typing import Any

import msgspec

type_tags = ("S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS")


EXACT = Context(prec=200)
"""DynamoDB's numbers have up to 38 digits; Decimal's own default rounds to 28."""


def normal(value: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a hashable form of one attribute value in which equal values are equal.

    `{"N": "1.0"}` equals `{"N": "1"}`, sets have no order. Binary is base64 text or bytes, as it came.
    """
    if len(value) != 1:
        raise ValueError(f"an attribute value has one type tag, this has {len(value)}: {dict(value)!r}")
    ((tag, inner),) = value.items()
    if tag == "N":
        return tag, digits(inner)
    if tag == "NS":
        return tag, frozenset(map(digits, inner))
    if tag in {"SS", "BS"}:
        return tag, frozenset(inner)
    if tag == "L":
        return tag, tuple(normal(v) for v in inner)
    if tag == "M":
        return tag, normal_item(inner)
    if tag in type_tags:
        return tag, inner
    raise ValueError(f"unknown attribute type {tag!r}")


def normal_item(item: Mapping[str, Mapping[str, Any]]) -> frozenset[tuple[str, tuple[Any, ...]]]:
    """Return a hashable form of an item's attributes in which equal items are equal."""
    return frozenset((name, normal(value)) for name, value in item.items())


def digits(text: str) -> str:
    """Return the text of a number, in which equal numbers are equal: 1.0 is 1, and there is no -0."""
    number = Decimal(text).normalize(EXACT)
    return str(number) if number else "0"


def typed(value: Any) -> dict[str, Any]:
    """Return a Python value in typed JSON; raise ValueError when DynamoDB has no such value.

    Numbers are int, Decimal or float (its shortest digits), binary is bytes, a set is of strings, numbers or bytes; times and
    durations are text as JSON has them.
    """
    if value is None:
        return {"NULL": True}
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, int | float | Decimal):
        return {"N": number_text(value)}
    if isinstance(value, bytes | bytearray):
        return {"B": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {"M": {_name(name): typed(one) for name, one in value.items()}}
    if isinstance(value, list | tuple):
        return {"L": [typed(one) for one in value]}
    if isinstance(value, set | frozenset):
        return _typed_set(value)
    if isinstance(value, datetime):
        return {"S": value.isoformat().replace("+00:00", "Z")}
    if isinstance(value, timedelta):
        return {"S": f"{value.total_seconds()}s"}
    raise ValueError(f"DynamoDB has no value like {type(value).__name__}")


def typed_item(text: bytes) -> bytes:
    """Return an object of plain JSON as an item in typed JSON, its numbers exact; raise ValueError when it is none."""
    try:
        return _encode({name: typed(one) for name, one in _decode(text).items()})
    except msgspec.DecodeError as error:
        raise ValueError(f"{error}") from error


_decode = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode
_encode = msgspec.json.encode


def number_text(value: float | Decimal) -> str:
    """Return the digits of a number; raise ValueError when it is none that DynamoDB could hold."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a number of DynamoDB")
        return repr(int(value)) if value.is_integer() and abs(value) < 1 << 53 else repr(value)
    if isinstance(value, Decimal) and not value.is_finite():
        raise ValueError(f"{value} is not a number of DynamoDB")
    return str(value)


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"the name of an attribute is text, not {type(name).__name__}")  # noqa: TRY004 - of a value
    return name


def _typed_set(value: set[Any] | frozenset[Any]) -> dict[str, Any]:
    tags = {"S": "SS", "N": "NS", "B": "BS"}
    members = [typed(one) for one in value]
    kinds = {next(iter(member)) for member in members}
    if len(kinds) != 1 or not kinds <= tags.keys():
        raise ValueError("a set holds strings, or numbers, or bytes, and is not empty")
    (kind,) = kinds
    return {tags[kind]: sorted(member[kind] for member in members)}


def python_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item in typed JSON as Python values: numbers are Decimal, binary is bytes, sets are sets."""
    return {name: python_value(value) for name, value in item.items()}


def python_value(value: Any) -> Any:
    """Return an attribute value in typed JSON as a Python value; raise ValueError when it is none."""
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError("an attribute value has one type tag")
    ((tag, inner),) = value.items()
    if (convert := _PYTHON.get(tag)) is None:
        raise ValueError(f"unknown attribute type {tag!r}")
    return convert(inner)


_PYTHON: Mapping[str, Callable[[Any], Any]] = {
    "S": str,
    "N": Decimal,
    "B": base64.b64decode,
    "BOOL": bool,
    "NULL": lambda _: None,
    "M": python_item,
    "L": lambda elements: [python_value(element) for element in elements],
    "SS": set,
    "NS": lambda numbers: set(map(Decimal, numbers)),
    "BS": lambda texts: set(map(base64.b64decode, texts)),
}


def from_client(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an attribute value as boto3's clients have it in typed JSON: binary as base64 text."""
    return _binary(value, lambda content: base64.b64encode(content).decode())


def to_client(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an attribute value in typed JSON as boto3's clients take it: binary as bytes."""
    return _binary(value, base64.b64decode)


def _binary(value: Mapping[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    ((tag, inner),) = value.items()
    if tag == "B":
        return {tag: convert(inner)}
    if tag == "BS":
        return {tag: [convert(member) for member in inner]}
    if tag == "L":
        return {tag: [_binary(member, convert) for member in inner]}
    if tag == "M":
        return {tag: {name: _binary(one, convert) for name, one in inner.items()}}
    return {tag: inner}
