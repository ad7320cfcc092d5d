"""Where in a JSON file a value is, for messages: decoders name its path, or a byte, and people look for a line."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

PATH = re.compile(r"(?:at|in) `\$([^`]*)`")
PART = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
BYTE = re.compile(r"\(byte (\d+)\)")
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def line_of_value(content: bytes, path: Sequence[str | int]) -> int:
    """Return the line, from 1 on, of the value at a path such as ("expect", 0, "headers"); or of the innermost found."""
    begin, value = 0, content
    for part in path:
        try:
            members = dict(enumerate(_list(value))) if isinstance(part, int) else _object(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            break
        if part not in members:
            break
        at = begin
        for name, raw in members.items():  # one after the other: equal values are in other places
            at = content.index(bytes(raw), at)
            if name == part:
                break
            at += len(bytes(raw))
        begin, value = at, bytes(members[part])  # type: ignore[index]  # it was found in it
    return 1 + content.count(b"\n", 0, begin + len(value) - len(value.lstrip()))


def line_of_error(content: bytes, error: msgspec.DecodeError) -> int:
    """Return the line of what msgspec does not take."""
    if (byte := BYTE.search(f"{error}")) is not None:
        return 1 + content.count(b"\n", 0, int(byte[1]))
    if (found := PATH.search(f"{error}")) is None:
        return 1 + content.count(b"\n")  # it ends too early
    path: list[str | int] = []
    for name, number, unknown in PART.findall(found[1]):
        if unknown:  # a member whose name msgspec does not say
            break
        path.append(int(number) if number else name)
    return line_of_value(content, path)
