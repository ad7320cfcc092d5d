"""What a reader of raw makes of it, from empty; and whether an item was older for a moment than before."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from models.change import decode


def replay(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, int]:
    """Return the items that a reader of raw has in the end, with their versions."""
    items: dict[str, int] = {}
    for key, value in raw:
        image = decode(value).after
        name = msgspec.json.decode(key)["id"]["S"]
        if image is None:
            items.pop(name, None)
        else:
            items[name] = int(msgspec.json.decode(image)["version"]["N"])
    return items


def goes_back(raw: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Return the items that were older for a moment than they had been before."""
    newest: dict[str, int] = {}
    found = []
    for key, value in raw:
        change, name = decode(value), msgspec.json.decode(key)["id"]["S"]
        before, after = change.before, change.after
        # A removal has no version of its own: it comes after that of its old image.
        version = msgspec.json.decode(after or before or b"")["version"]["N"]
        at = 2 * int(version) + (after is None)
        if at < newest.get(name, 0):
            found.append(name)
        newest[name] = max(newest.get(name, 0), at)
    return found
