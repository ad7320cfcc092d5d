"""Add what a change does not carry itself: a foreign-key join with the current item of another table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from models.change import Change, canonical

Lookup = Callable[[bytes], bytes | None]
"""Takes a reference key, returns the item as typed JSON, or None."""

_decode_image = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_value = msgspec.json.Decoder(dict[str, str]).decode
_decode_key = msgspec.json.Decoder(dict[str, dict[str, str]]).decode


class JoinStep(NamedTuple):
    """One join: which attribute of the change points where, and the name under which the item is added."""

    on: str
    into: str
    lookup: Lookup


def reference_key(change: Change) -> bytes:
    """Return the key under which an item of a reference table is looked up: the value of its one key attribute.

    Raise ValueError when the table has a composite key: a foreign key could not name one item.
    """
    keys = _decode_key(change.body.keys)
    if len(keys) != 1:
        raise ValueError(f"the reference table {change.table} has {len(keys)} key attributes, a join needs one")
    (value,) = keys.values()
    return canonical(value)


def enrich(value: bytes, change: Change, joins: Sequence[JoinStep]) -> bytes:
    """Return the change with a member `enriched` that holds, by join, the item found or null (a left join).

    The change's own bytes are kept as they are.
    """
    if not joins:
        return value
    image = change.after or change.before
    attributes = _decode_image(image) if image is not None else {}
    parts = []
    for join in joins:
        foreign = attributes.get(join.on)
        item = join.lookup(_foreign_key(foreign)) if foreign is not None else None
        parts.append(msgspec.json.encode(join.into) + b":" + (item or b"null"))
    return value.rstrip()[:-1] + b',"enriched":{' + b",".join(parts) + b"}}"


def _foreign_key(value: msgspec.Raw) -> bytes:
    try:
        return canonical(_decode_value(value))
    except msgspec.DecodeError:  # a set, a list, a map, a boolean: no key attribute has such a type
        return b""
