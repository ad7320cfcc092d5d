"""DynamoDB's typed JSON as plain JSON, exact. Pure.

Strings keep their bytes, numbers all their digits; binary is base64 text, sets are sorted lists (numbers by their value). An
image is decoded in one pass into a struct a value; what is written again is raw where it can be: 2 us for 12 attributes, where
decoding to Python and writing that takes 6 and more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

from pipeline.steps.forms import NUMBER, Forms, Numbers

Plain: TypeAlias = Any
"""What `msgspec.json.encode` writes as plain JSON: raw values, texts, lists and dicts of them, None."""
NONE = msgspec.Raw()
NULL = msgspec.Raw(b"null")
is_number = re.compile(NUMBER).fullmatch
"""Matches what JSON takes as a number."""
encode = msgspec.json.encode


class Tagged(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An attribute value: one of its members is there."""

    text: msgspec.Raw = msgspec.field(name="S", default=NONE)
    number: str | None = msgspec.field(name="N", default=None)
    boolean: bool | None = msgspec.field(name="BOOL", default=None)
    null: bool | None = msgspec.field(name="NULL", default=None)
    binary: msgspec.Raw = msgspec.field(name="B", default=NONE)
    members: msgspec.Raw = msgspec.field(name="M", default=NONE)
    elements: msgspec.Raw = msgspec.field(name="L", default=NONE)
    texts: list[str] | None = msgspec.field(name="SS", default=None)
    numbers: list[str] | None = msgspec.field(name="NS", default=None)
    binaries: list[str] | None = msgspec.field(name="BS", default=None)


class Strict(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An attribute value that is checked by DynamoDB's rules: one type tag, and what is allowed under it."""

    text: str | None = msgspec.field(name="S", default=None)
    number: str | None = msgspec.field(name="N", default=None)
    boolean: bool | None = msgspec.field(name="BOOL", default=None)
    null: bool | None = msgspec.field(name="NULL", default=None)
    binary: str | None = msgspec.field(name="B", default=None)
    members: dict[str, Strict] | None = msgspec.field(name="M", default=None)
    elements: list[Strict] | None = msgspec.field(name="L", default=None)
    texts: list[str] | None = msgspec.field(name="SS", default=None)
    numbers: list[str] | None = msgspec.field(name="NS", default=None)
    binaries: list[str] | None = msgspec.field(name="BS", default=None)

    def __post_init__(self) -> None:
        tags = sum(one is not None for one in msgspec.structs.astuple(self))
        if tags != 1 or self.null is False:
            raise ValueError(f"an attribute value has one type tag, this has {tags}")


decode_item = msgspec.json.Decoder(dict[str, Tagged]).decode
_decode_list = msgspec.json.Decoder(list[Tagged]).decode
decode_value = msgspec.json.Decoder(Tagged).decode
_check_value = msgspec.json.Decoder(Strict).decode


def plain_item(image: bytes | msgspec.Raw, numbers: Numbers = "exact") -> dict[str, Plain]:
    """Return an item as plain values by name; raise ValueError when it is none of DynamoDB's."""
    try:
        tagged = decode_item(image)
    except msgspec.DecodeError as error:
        raise ValueError(f"not an item: {error}") from error
    number = WAYS[numbers]
    found: dict[str, Plain] = {}
    for name, value in tagged.items():
        # The two that nearly all values are; the rest in one place.
        if (text := value.text) is not NONE:
            found[name] = text
        elif (digits := value.number) is not None:
            found[name] = number(digits)
        else:
            found[name] = _other(value, number)
    return found


def plain_json(image: bytes | None, numbers: Numbers = "exact") -> bytes:
    """Return an item as plain JSON, none as null; raise ValueError when it is none of DynamoDB's."""
    if image is None:
        return b"null"
    return known_form(image, numbers) or encode(plain_item(image, numbers))


def known_form(image: bytes, numbers: Numbers) -> bytes | None:
    """Return an item of a known form as plain JSON, no number in it as text unless all are; None for others."""
    return _forms(image[: image.find(b":")], numbers).write(image)


@lru_cache(maxsize=1_024)
def _forms(_begin: bytes, numbers: Numbers) -> Forms:
    """Return the forms of items that begin with an attribute."""
    return Forms(numbers)


def with_members(item: bytes, more: Mapping[str, Plain]) -> bytes | None:
    """Return an item that `plain_json` has written with more members; None when one of their names may be among its own."""
    for name in more:
        if encode(name) + b":" in item:  # in a text that would be escaped, in an item within perhaps not
            return None
    if not more or item == b"{}":
        return encode(more) if more else item
    return item[:-1] + b"," + encode(more)[1:]


def plain_value(value: bytes | msgspec.Raw, numbers: Numbers = "exact") -> Plain:
    """Return an attribute value as a plain value; raise ValueError when it is none of DynamoDB's.

    It is checked whole, unlike the images of a change, which AWS has written.
    """
    try:
        _check_value(value)
        tagged = decode_value(value)
    except msgspec.DecodeError as error:
        raise ValueError(f"not an attribute value: {error}") from error
    return _value(tagged, WAYS[numbers])


def untagged(value: Tagged, numbers: Numbers = "exact") -> Plain:
    """Return a decoded attribute value as a plain value."""
    return _value(value, exact if numbers == "exact" else as_text)


def exact(text: str) -> Plain:
    """Return a number as JSON's, with all its digits; raise ValueError when it is none."""
    if is_number(text):
        return msgspec.Raw(text.encode())
    try:
        number = Decimal(text)  # "+1", "007": not JSON's spelling
    except ArithmeticError as error:
        raise ValueError(f"{text!r} is not a number") from error
    if not number.is_finite():
        raise ValueError(f"{text!r} is not a number")
    return msgspec.Raw(str(number).encode())


def as_text(text: str) -> Plain:
    """Return a number as text: for readers whose numbers are doubles."""
    return text


def shared(text: str) -> Plain:
    """Return a number as JSON's where it is whole or a double has all its digits, else as text."""
    return exact(text) if _is_whole(text) or Decimal(repr(float(text))) == Decimal(text) else text


_is_whole = re.compile(r"-?(?:0|[1-9][0-9]*)").fullmatch
WAYS: Mapping[Numbers, Callable[[str], Plain]] = {"exact": exact, "string": as_text, "shared": shared}


def _value(value: Tagged, number: Callable[[str], Plain]) -> Plain:
    if value.text is not NONE:
        return value.text
    return number(value.number) if value.number is not None else _other(value, number)


def _other(value: Tagged, number: Callable[[str], Plain]) -> Plain:
    if value.boolean is not None:
        return value.boolean
    if value.null is not None:
        return NULL
    if value.binary is not NONE:
        return value.binary
    if value.members is not NONE:
        return {name: _value(one, number) for name, one in decode_item(value.members).items()}
    if value.elements is not NONE:
        return [_value(one, number) for one in _decode_list(value.elements)]
    if value.numbers is not None:
        return [number(one) for one in sorted(value.numbers, key=Decimal)]
    if (texts := value.texts if value.texts is not None else value.binaries) is not None:
        return sorted(texts)
    raise ValueError("an attribute value has one type tag, this has none")


def plain_added(added: Mapping[str, msgspec.Raw], numbers: Numbers = "exact") -> dict[str, Plain]:
    """Return what was added to a change as plain values."""
    found: dict[str, Plain] = {}
    for name, value in added.items():
        content = bytes(value)
        if (number := _is_tagged_number(content)) is None:
            found[name] = _rendered(content, numbers)
        else:  # of SQL, for instance: each is another, and would only put others out of the cache
            written = WAYS[numbers](number[1].decode())
            found[name] = written if isinstance(written, msgspec.Raw) else msgspec.Raw(b'"' + number[1] + b'"')
    return found


_is_tagged_number = re.compile(rb'\{"N":"(' + NUMBER.encode() + rb')"\}').fullmatch


@lru_cache(maxsize=16_384)
def _rendered(value: bytes, numbers: Numbers) -> Plain:
    """Return an attribute value as plain JSON. The items of a reference table come again and again."""
    return msgspec.Raw(encode(plain_value(value, numbers)))
