"""JSON whose numbers keep all their digits, read and written: what people see and compare. Steps have forms of their own.

The `json` of Python makes doubles of fractions, and rich does so too when it prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import msgspec

_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode
_decode = msgspec.json.Decoder(float_hook=Decimal).decode
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_decoder = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\n\r]*")


def loads(text: str | bytes) -> Any:
    """Return what JSON says; a number with a fraction or an exponent is a Decimal. Raise ValueError when it is not JSON."""
    try:
        return _decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"{error}") from error


def dumps(value: Any, *, indent: int = 0, ascii_only: bool = False) -> str:
    """Return a value as JSON, in one line unless `indent` says otherwise."""
    text = msgspec.json.format(_encode(value), indent=indent).decode()
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) if ascii_only else text


def same(one: Any, other: Any) -> bool:
    """Say whether two values out of JSON are equal: 1 is 1.0, and no number is true or false."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def with_member(text: str, name: str, value: Any) -> str:
    """Return the text of an object in which one member is another, or is added; every other character stays."""
    written = dumps(value, indent=2).replace("\n", "\n  ")
    for key, begin, end in _members(text):
        if key == name:
            return text[:begin] + written + text[end:]
    close = text.rindex("}")
    before = text[:close].rstrip()
    comma = "" if before.endswith("{") else ","
    return f"{before}{comma}\n  {dumps(name)}: {written}\n{text[close:]}"


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the members of an object: name, and where the value begins and ends."""
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = _decoder.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _, end = _decoder.raw_decode(text, begin)
        yield key, begin, end
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return at if found is None else found.end()
