"""Add what a change does not carry itself: an item of another table (a join), or what an expression gives. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from models.attribute_path import Path, find, is_added, parse, readings
from models.attributes import typed
from models.change import NONE, Change, canonical
from pipeline.steps.event import NULL, Event, Item, Step, Value, each
from pipeline.steps.expression import compile_value

Lookup = Callable[[bytes], bytes | None]
"""Takes a reference key, returns the item as typed JSON, or None."""

_decode_value = msgspec.json.Decoder(dict[str, str]).decode
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode
_decode_key = msgspec.json.Decoder(dict[str, dict[str, str]]).decode


class MissingReferenceError(ValueError):
    """There is no such item in the reference table, and the join says that the change waits, or is rejected.

    `until` is when the change no longer waits, by the clock of the step; 0: it never did.
    """

    def __init__(self, table: str, key: bytes, until: float) -> None:
        super().__init__(f"there is no item in the reference table {table} for the value that the change has")
        self.table, self.key, self.until = table, key, until


class OtherKeyError(ValueError):
    """A change is joined by its own key with a table that has another: the item can never be found."""

    def __init__(self, table: str, theirs: str, own: str) -> None:
        super().__init__(
            f"the reference table {table} has the key {theirs}, the change has the key {own}: they never match; "
            'give the join state = "global" and `on`'
        )


def reference(value: Value) -> bytes:
    """Return an attribute value as the key of a reference table; b'' for a type that no key attribute has."""
    raw = bytes(value)
    if (
        raw.startswith(b'{"S":"')
        and raw.count(b'"') == 4
        and raw.endswith(b'"}')
        and b"\\" not in raw
        and raw.isascii()
    ):
        return raw  # as canonical JSON writes it
    try:
        return canonical(_decode_value(value))
    except msgspec.DecodeError:  # a set, a list, a map, a boolean
        return b""


def digest(item: bytes | None) -> bytes:
    """Return what tells an item of a reference table from another; b'' for none."""
    return b"" if item is None else blake2b(item, digest_size=8).digest()


def text_of_key(value: Value) -> bytes:
    """Return text, or a number, as the key of a topic; b'' for other types."""
    try:
        return next((text.encode() for tag, text in _decode_value(value).items() if tag in {"S", "N"}), b"")
    except msgspec.DecodeError:
        return b""


@dataclass(frozen=True, slots=True)
class JoinStep:
    """One join: what of the change points where, and the name under which the item is added."""

    table: str
    on: str | None
    """The attribute that points to the item; None: the change's own key."""
    into: str
    lookup: Lookup
    missing: Literal["null", "drop", "reject"] = "null"
    hold: float = 0.0
    re_emits: bool = False
    """Whether the change is sent again when the item changes, or comes."""
    clock: Callable[[], float] = time.monotonic
    """What `at` of the changes is counted with: no time stamp, so that a clock that is off shortens no wait."""
    key_of: Callable[[Value], bytes] = reference
    """Returns the reference key that an attribute's value stands for; b'': none."""
    key_schema: Callable[[], str] = str
    """Without `on`: returns the key attributes of the reference table (see `key_schema`); '': nobody knows them yet."""

    def __call__(self, event: Event) -> None:
        """Add the item."""
        key = self._key(event)
        item = self.lookup(key) if key else None
        if self.re_emits and key:
            event.references.append((self.table, key, digest(item)))
        if item is not None:
            event.added[self.into] = msgspec.Raw(b'{"M":' + item + b"}")
            return
        if self.on is None:
            self._check_key(event)
        if key and self.hold and self.clock() < (until := event.at + self.hold):
            raise MissingReferenceError(self.table, key, until)
        if self.missing == "reject":
            raise MissingReferenceError(self.table, key, 0.0)
        event.gone = self.missing == "drop"
        event.added[self.into] = NULL

    def _key(self, event: Event) -> bytes:
        """Return the key of the item that the change points to; b'' when it points to none."""
        if self.on is None:
            return event.key or b""
        value = attribute(event, self.on)
        return b"" if value is None else self.key_of(value)

    def _check_key(self, event: Event) -> None:
        theirs, own = self.key_schema(), key_schema(event.change)
        if theirs not in {"", own}:
            raise OtherKeyError(self.table, theirs, own)


def join(step: JoinStep) -> Step:
    """Return the join as a step."""
    return each(step)


def compute(text: str, into: str) -> Step:
    """Return the step that adds what an expression gives."""
    evaluate = compile_value(text)

    def add(event: Event) -> None:
        value = evaluate(event.value, event.change, event.added)
        event.added[into] = msgspec.Raw(msgspec.json.encode(typed(value)))

    return each(add)


def reference_key(change: Change) -> bytes:
    """Return the key under which an item of a reference table is looked up: the value of its one key attribute.

    Of a table with more of them it is the whole key, which no foreign key names: only SQL reads those.
    """
    keys = _decode_key(change.body.keys)
    return canonical(next(iter(keys.values())) if len(keys) == 1 else keys)


def has_sort_key(change: Change) -> bool:
    """Say whether the table of a change has more than one key attribute."""
    return len(_decode_key(change.body.keys)) > 1


def key_schema(change: Change) -> str:
    """Return the names and types of a change's key attributes, which are the same for all items of a table: `id (S), n (N)`."""
    keys = _decode_key(change.body.keys)
    return ", ".join(f"{name} ({tag})" for name, value in sorted(keys.items()) for tag in value)


def attribute(event: Event, name: str) -> Value | None:
    """Return the value at a path into the item as the change left it, or into what was added: enriched.customer.region."""
    path = parse(name)
    if is_added(path):
        return _at(event.added, path[1:])
    if len(path) > 1:
        return _at(event.image or {}, path)
    first = str(path[0])
    if (image := event.uncut) is not None:
        try:
            value: Value = _only(first)(image).value
        except msgspec.DecodeError:  # there is none after the change, or it is not an item: seen below
            pass
        else:
            return None if value is NONE else value
    return (event.image or {}).get(first)


@lru_cache(maxsize=1024)
def _only(name: str) -> Callable[[msgspec.Raw], Any]:
    """Return what reads one attribute of an image, at a third of what cutting all of it costs."""
    one = msgspec.defstruct("One", [("value", msgspec.Raw, msgspec.field(name=name, default=NONE))])
    return msgspec.json.Decoder(one).decode


def _at(item: Item, path: Path) -> Value | None:
    """Return the attribute value at a path into an item."""
    some = {name: _decode_any(item[name]) for name, _ in readings(path) if name in item}
    value = find(some, path)
    return None if value is None else msgspec.Raw(msgspec.json.encode(value))
