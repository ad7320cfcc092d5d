"""Where an attribute is: the one way to write it, and to find what is there. Pure.

A path is names with dots between them, and in brackets the element of a list: `email`, `address.street`, `phones[0].number`;
`phones[*].number` means all elements. `enriched.` begins what a step has added. A dot may also be in a name: `a.b` is the
attribute `b` in the map `a`, and an attribute that is called `a.b`. In double quotes a name is what it is: `"a.b"`, `"*"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias


class Quoted(str):
    """A name that was in quotes: no other name is meant."""

    __slots__ = ()


Part: TypeAlias = str | int | None
"""A name, the number of an element, or None for all elements."""
Path: TypeAlias = tuple[Part, ...]
ADDED = "enriched"
"""What paths of what was added begin with."""
WORDS = "a path such as email, address.street or phones[*].number"
_PART = re.compile(r'(?P<dot>\.)?(?:"(?P<quoted>(?:[^"\\]|\\["\\])+)"|(?P<name>[^.\[\]"]+)|\[(?P<index>\*|\d+)\])')


class PathError(ValueError):
    """It is not a path, or leads nowhere; says why."""


@lru_cache(maxsize=4096)
def parse(path: str) -> Path:
    """Return the parts of a path; raise PathError for what can name nothing.

    >>> parse('phones[*]."a.b"')
    ('phones', None, 'a.b')
    """
    parts: list[Part] = []
    at = 0
    while at < len(path):
        match = _PART.match(path, at)
        if match is None or bool(match["dot"]) != (bool(parts) and match["index"] is None):
            raise PathError(f"expected {WORDS}")
        parts.append(_part(path, match))
        at = match.end()
    if not parts or not isinstance(parts[0], str):
        raise PathError(f"expected {WORDS}")
    return tuple(parts)


def _part(path: str, match: re.Match[str]) -> Part:
    if (quoted := match["quoted"]) is not None:
        return Quoted(re.sub(r"\\(.)", r"\1", quoted))
    if (index := match["index"]) is not None:
        return None if index == "*" else int(index)
    name = match["name"]
    if "*" in name:
        raise PathError(
            f"{path!r}: * is not a name, [*] means all elements of a list; put a name with * in double quotes"
        )
    if name != name.strip():
        raise PathError(f"{path!r}: a name begins or ends with a blank; put such a name in double quotes")
    return name


def is_added(path: Path) -> bool:
    """Say whether a path leads into what was added."""
    return len(path) > 1 and path[0] == ADDED and not isinstance(path[0], Quoted)


def readings(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield what may be the first name of a path, and the rest: dots can be in names.

    >>> list(readings(("a", "b", None)))
    [('a', ('b', None)), ('a.b', (None,))]
    """
    names: list[str] = []
    for number, part in enumerate(path, 1):
        if not isinstance(part, str) or (names and isinstance(part, Quoted)):
            return
        names.append(part)
        yield ".".join(names), path[number:]
        if isinstance(part, Quoted):
            return


def find(members: Mapping[str, Any], path: Path) -> Any:
    """Return the attribute value at a path through decoded members, None when there is none.

    An attribute of the very name goes before one in a map. Raises PathError for `[*]`, which names many.
    """
    for name, rest in sorted(readings(path), key=lambda one: len(one[1])):
        if name in members and (value := _within(members[name], rest)) is not None:
            return value
    return None


def _within(value: Any, path: Path) -> Any:
    if not path:
        return value
    if isinstance(path[0], str):
        return find(value.get("M", {}), path)
    if path[0] is None:
        raise PathError("[*] names many values, where one is needed")
    elements = value.get("L", ())
    return _within(elements[path[0]], path[1:]) if path[0] < len(elements) else None
