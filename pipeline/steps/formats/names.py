"""Names of attributes as Avro and Protobuf take them: letters, digits and _. Pure, and can be undone."""

from __future__ import annotations

import re
from functools import lru_cache

LEGAL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch
ESCAPE = re.compile(r"_u([0-9a-f]{4,6})_")


@lru_cache(maxsize=8192)
def escaped_name(name: str) -> str:
    """Return a name in which every other character is `_uXXXX_`, its code point in hex; legal names stay as they are."""
    if LEGAL(name) and not ESCAPE.search(name):
        return name
    guarded = ESCAPE.sub(lambda match: f"_u005f_{match[0][1:]}", name)
    return "".join(
        char if re.match(r"[A-Za-z_]" if n == 0 else r"[A-Za-z0-9_]", char) else f"_u{ord(char):04x}_"
        for n, char in enumerate(guarded)
    )


def original(name: str) -> str:
    """Return the name that was escaped."""
    return ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)


@lru_cache(maxsize=1024)
def escaped_full(name: str) -> str:
    """Return a name with dots, in which each part between them is escaped."""
    return ".".join(escaped_name(part) or "_" for part in name.split("."))


def original_full(name: str) -> str:
    """Return the name with dots that was escaped."""
    return ".".join(original(part) for part in name.split("."))
