"""The proof: what was written, compared change by change with what came out. No I/O.

Every change of an item has an identity that survives any transport: the attribute `version`, which whoever writes
raises with each write to the item, also after a delete. So a missing change is distinguished from one that came
twice, late or altered.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from typing import Any

import orjson

from models.attributes import normal_item
from models.change import Op, canonical

Item = dict[str, dict[str, Any]]
"""An item in DynamoDB's typed form. As boto3 takes it, binary is bytes; as a stream record has it, base64 text."""

Actual = tuple[str, bytes, str, str, bytes | None, bytes | None]
"""A change that came out: table, item key, event ID, op, new image and old image as typed JSON (None: has none)."""

ItemId = tuple[str, bytes]
"""One item of all tables: table, item key."""

VERSION = "version"
EXACT = Context(prec=200)
"""DynamoDB's numbers have up to 38 digits; Decimal's own default keeps 28."""
EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class ProofExpected:
    """One change that was written and so must come out. `new` and `old` are items as boto3 takes them."""

    table: str
    key: bytes
    op: Op
    new: Item | None
    old: Item | None

    @property
    def version(self) -> int:
        """The item's version that this change made, or that it deleted."""
        return int((self.new or self.old or {})[VERSION]["N"])


class Truth:
    """All changes that were written: in order for each item, in no order between items."""

    def __init__(self, changes: Iterable[ProofExpected]) -> None:
        self.items: dict[ItemId, list[ProofExpected]] = {}
        for change in changes:
            self.items.setdefault((change.table, change.key), []).append(change)

    def __iter__(self) -> Iterator[ProofExpected]:
        for changes in self.items.values():
            yield from changes

    def __len__(self) -> int:
        return sum(len(changes) for changes in self.items.values())

    def where(self, predicate: Callable[[ProofExpected], bool]) -> Truth:
        """Return the part that the predicate holds for: what a sink must have, when a flow filters."""
        return Truth(change for change in self if predicate(change))


@dataclass(frozen=True, slots=True)
class ProofVerdict:
    """What the comparison found, in changes. `examples` names a few faults, one line each.

    `lost` were written and never seen; `duplicated` were seen again, by identity or by event ID; `out_of_order` came
    after a later change of their item; `altered` differ from what was written; `unexpected` were never written.
    """

    written: int
    seen: int
    lost: int
    duplicated: int
    out_of_order: int
    altered: int
    unexpected: int
    examples: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every change came out once, in order, as it was written, and nothing else did."""
        return not (self.lost or self.duplicated or self.out_of_order or self.altered or self.unexpected)


def compare(expected: Truth, actual: Iterable[Actual], comparison: Comparison | None = None) -> ProofVerdict:
    """Compare what came out with what must have come out; in linear time.

    `actual` is in the order in which it was read, at least for each item: partition after partition will do.
    """
    with localcontext(EXACT):
        comparison = comparison or Comparison(expected)
        for change in actual:
            comparison.see(change)
        return comparison.verdict()


def item_key(key: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return the item key of key attributes as boto3 takes them: equal, byte for byte, to that of their stream record.

    DynamoDB keeps numbers, not their spelling, so `{"N": "1.0"}` and `{"N": "1"}` are one key; it says `1`.
    """
    return canonical(
        {name: {"N": normal_number(value["N"])} if "N" in value else json_value(value) for name, value in key.items()}
    )


def normal_number(text: str) -> str:
    """Return a number as DynamoDB spells it: no exponent, no leading or trailing zeros, no negative zero."""
    number = EXACT.create_decimal(text)
    return format(number.normalize(EXACT), "f") if number else "0"


def json_item(item: Mapping[str, Mapping[str, Any]]) -> Item:
    """Return an item that boto3 takes in the form that stream records have: binary as base64 text."""
    return {name: json_value(value) for name, value in item.items()}


def json_value(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return one attribute value that boto3 takes in the form that stream records have."""
    ((tag, inner),) = value.items()
    if tag == "B":
        return {tag: base64.b64encode(inner).decode()}
    if tag == "BS":
        return {tag: [base64.b64encode(member).decode() for member in inner]}
    if tag == "L":
        return {tag: [json_value(member) for member in inner]}
    if tag == "M":
        return {tag: json_item(inner)}
    return {tag: inner}


class Comparison:
    """What has been seen so far. A change is known by its item, its version and whether it is a delete."""

    def __init__(self, expected: Truth) -> None:
        self._written = len(expected)
        self._places: dict[tuple[ItemId, int, bool], tuple[int, ProofExpected]] = {
            (item, change.version, change.op == "d"): (place, change)
            for item, changes in expected.items.items()
            for place, change in enumerate(changes)
        }
        self._unseen = dict.fromkeys(self._places)
        self._event_ids: set[tuple[str, str]] = set()
        self._latest: dict[ItemId, int] = {}
        self._seen = self._duplicated = self._out_of_order = self._altered = self._unexpected = 0
        self._examples: list[str] = []

    def see(self, actual: Actual) -> None:
        """Count one change that came out, under at most one fault beside `altered`."""
        table, key, event_id, op, new_json, old_json = actual
        self._seen += 1
        new, old = self.read(new_json), self.read(old_json)
        identity = ((table, key), self.version(new or old), new is None)
        known_event = (table, event_id) in self._event_ids
        self._event_ids.add((table, event_id))
        if identity not in self._places:
            # An event that came before is a duplicate even if nothing of its contents can be recognised.
            if known_event:
                self._duplicated += 1
                self._show("duplicated event", event_id, identity)
            else:
                self._unexpected += 1
                self._show("unexpected", event_id, identity)
            return
        place, expected = self._places[identity]
        if known_event or identity not in self._unseen:
            self._duplicated += 1
            self._show("duplicated", event_id, identity)
        elif place < self._latest.get(identity[0], -1):
            self._out_of_order += 1
            self._show("out of order", event_id, identity)
        self._unseen.pop(identity, None)
        self._latest[identity[0]] = max(place, self._latest.get(identity[0], -1))
        if op != expected.op or not self.same(new, old, expected):
            self._altered += 1
            self._show("altered", event_id, identity)

    def read(self, image: bytes | None) -> Item | None:
        """Return an image, decoded."""
        return None if image is None else orjson.loads(image)

    def version(self, item: Item | None) -> int:
        """Return the item's version, or -1, which no change has, when it cannot be read."""
        return _version(item)

    def same(self, new: Item | None, old: Item | None, expected: ProofExpected) -> bool:
        """Say whether images are those that were written."""
        return _same(new, expected.new) and _same(old, expected.old)

    def verdict(self) -> ProofVerdict:
        """Count what never came, and judge."""
        for identity in self._unseen:
            if len(self._examples) >= EXAMPLES:
                break
            self._show("lost", "", identity)
        return ProofVerdict(
            written=self._written,
            seen=self._seen,
            lost=len(self._unseen),
            duplicated=self._duplicated,
            out_of_order=self._out_of_order,
            altered=self._altered,
            unexpected=self._unexpected,
            examples=tuple(self._examples),
        )

    def _show(self, fault: str, event_id: str, identity: tuple[ItemId, int, bool]) -> None:
        if len(self._examples) < EXAMPLES:
            (table, key), version, deleted = identity
            what = "delete of version" if deleted else "version"
            event = f" (event {event_id})" if event_id else ""
            self._examples.append(f"{fault}: {table} {key.decode(errors='replace')} {what} {version}{event}")


class Masks:
    """Values and what stands for them: one to one, and nothing that shows the value."""

    def __init__(self) -> None:
        self._hash_of: dict[str, str] = {}
        self._value_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._hash_of)

    def fits(self, value: str, shown: Any) -> bool:
        """Say whether this may stand for a value, as far as is known by now."""
        if not isinstance(shown, str) or not re.fullmatch("[0-9a-f]{64}", shown):
            return False
        return self._hash_of.setdefault(value, shown) == shown and self._value_of.setdefault(shown, value) == value


class PlainComparison(Comparison):
    """Compares plain JSON of items, one attribute of which is masked, with what was written."""

    def __init__(self, expected: Truth, masked: str, masks: Masks) -> None:
        super().__init__(expected)
        self._masked, self._masks = masked, masks

    def read(self, image: bytes | None) -> Item | None:
        """Return an item, its numbers exact."""
        return None if image is None else json.loads(image, parse_float=Decimal, parse_int=Decimal)

    def version(self, item: Item | None) -> int:
        """Return the item's version."""
        plain: Mapping[str, Any] = item or {}
        return int(plain.get(VERSION, -1))

    def same(self, new: Item | None, old: Item | None, expected: ProofExpected) -> bool:
        """Say whether the item is the one that was written, with a mask in its place."""
        shown = new if new is not None else old
        written = expected.new if expected.new is not None else expected.old
        if shown is None or written is None:
            return False
        wanted: dict[str, Any] = {name: plain(value) for name, value in written.items()}
        clear = wanted.pop(self._masked, None)
        mask = shown.pop(self._masked, None)
        return shown == wanted and ((clear is None and mask is None) or self._masks.fits(str(clear), mask))


def plain(value: Mapping[str, Any]) -> Any:
    """Return an attribute value that boto3 takes as plain JSON says it: written apart from the product's own way."""
    ((tag, inner),) = value.items()
    if tag == "N":
        return Decimal(inner)
    if tag == "NS":
        return sorted(map(Decimal, inner))
    if tag == "NULL":
        return None
    if tag == "L":
        return [plain(member) for member in inner]
    if tag == "M":
        return {name: plain(one) for name, one in inner.items()}
    ((_, text),) = json_value(value).items()
    return sorted(text) if tag in {"SS", "BS"} else text


def _version(item: Item | None) -> int:
    """Return the item's version, or -1, which no change has, when it cannot be read."""
    try:
        return int(Decimal((item or {})[VERSION]["N"]))
    except (KeyError, TypeError, ArithmeticError, ValueError):
        return -1


def _same(actual: Item | None, written: Item | None) -> bool:
    if actual is None or written is None:
        return actual is written
    as_json = json_item(written)
    if actual == as_json:
        # Nearly always so, and four times cheaper than the normal form.
        return True
    try:
        return normal_item(actual) == normal_item(as_json)
    except (AttributeError, TypeError, ValueError, ArithmeticError):
        return False
