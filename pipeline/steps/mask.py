"""Make attributes unreadable, before anything is written. Pure.

A mask reaches the images before and after, what was added, and the key: an attribute of the key is masked in `Keys` and in
the Kafka key as well. There only what tells items apart is allowed: hash and tokenise.

In doubt it masks too much. A path that leads into a value of another type than it expects (an address that is text in some
items) masks that value whole; a path with dots also masks attributes that have such dots in their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from models.attribute_path import Path, is_added, parse, readings
from models.attributes import digits
from pipeline.settings.enrich import MaskSettings
from pipeline.steps.event import Event, Item, Step, Value, each
from pipeline.steps.secrecy import MaskKey

Change: TypeAlias = Callable[[Any], Any]
"""Takes an attribute value, decoded; returns what replaces it, GONE for nothing."""
GONE: Any = object()
KEEPS_APART = {"hash", "tokenise"}
SETS = {"SS": "S", "NS": "N", "BS": "B"}
"""The types of sets, and those of their members."""
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


class KeyMaskError(ValueError):
    """An attribute of the key is masked in a way that does not tell items apart."""


def compile_masks(masks: Sequence[MaskSettings], key: MaskKey) -> Step:
    """Return the step that masks attributes; a path that a change does not have masks nothing."""
    compiled = []
    for mask in masks:
        path, change = parse(mask.path), _change(mask, key)
        added = is_added(path)
        compiled += [(added, name, rest, mask, change) for name, rest in readings(path[1:] if added else path)]
        if added:  # or an attribute of the item that is called so
            compiled += [(False, name, rest, mask, change) for name, rest in readings(path)]

    def step(event: Event) -> None:
        for leads_to_added, name, rest, mask, change in compiled:
            if leads_to_added:
                event.added = _masked(event.added, name, rest, change)
                continue
            if name in event.keys:
                if mask.how not in KEEPS_APART or rest:
                    raise KeyMaskError(f"{mask.path} is an attribute of the key: hash or tokenise it, not {mask.how}")
                event.keys = _masked(event.keys, name, rest, change)
            if (before := event.before) is not None and name in before:
                event.before = _masked(before, name, rest, change)
            if (after := event.after) is not None and name in after:
                event.after = _masked(after, name, rest, change)

    return each(step)


def _change(mask: MaskSettings, key: MaskKey) -> Change:
    if mask.how == "hash":
        return lambda value: {"S": key.hash(canonical(value))}
    if mask.how == "tokenise":
        return lambda value: {"S": key.tokenise(_encode(value))}
    if mask.how == "redact":
        return lambda value: {"S": mask.text}
    if mask.how == "drop":
        return lambda value: GONE

    def truncate(value: Any) -> Any:
        if "S" not in value:  # of a number, or of binary, the beginning says too much or nothing
            return {"S": "***"}
        return {"S": value["S"][: mask.keep]}

    return truncate


def canonical(value: Any) -> bytes:
    """Return a value in a form in which equal values are equal: 1.0 is 1, sets have no order.

    The form is what is hashed, so it is the same with every version of Python and of the libraries: the type tag, and text as
    it is, or digits as Decimal writes them. Raise ValueError for what is not an attribute value.
    """
    ((tag, inner),) = value.items()
    if tag == "S":  # nearly always, and needs no parsing of its own
        return b"S:" + inner.encode()  # type: ignore[no-any-return]  # the text of an S
    return f"{tag}:".encode() + _encode(_plain(tag, inner))


def _plain(tag: str, inner: Any) -> Any:
    """Return what is within a value, as JSON that does not depend on how it was written."""
    if tag == "N":
        return digits(inner)
    if tag == "NS":
        return sorted(map(digits, inner))
    if tag in {"SS", "BS"}:
        return sorted(inner)
    if tag == "L":
        return [_tagged(member) for member in inner]
    if tag == "M":
        return sorted([name, *_tagged(one)] for name, one in inner.items())
    if tag in {"S", "B", "BOOL", "NULL"}:
        return inner
    raise ValueError(f"unknown attribute type {tag!r}")


def _tagged(value: Any) -> list[Any]:
    ((tag, inner),) = value.items()
    return [tag, _plain(tag, inner)]


def _masked(item: Item, name: str, rest: Path, change: Change) -> Item:
    value = item.get(name)
    if value is None:
        return item
    new = _within(_decode(value), rest, change)
    if new is GONE:
        return {other: one for other, one in item.items() if other != name}
    return {**item, name: _raw(new)}


def _raw(value: Any) -> Value:
    return msgspec.Raw(msgspec.json.encode(value))


def _within(value: Any, path: Path, change: Change) -> Any:
    """Return an attribute value in which what the path leads to is changed; one in which it leads nowhere is changed whole."""
    if not path:
        return change(value)
    if "NULL" in value:
        return value
    part, rest = path[0], path[1:]
    if isinstance(part, str):
        return _within_map(value, path, change)
    elements = value.get("L")
    if elements is None:
        return _within_set(value, rest, change)
    masked = [
        _within(one, rest, change) if part is None or part == number else one for number, one in enumerate(elements)
    ]
    return {"L": [one for one in masked if one is not GONE]}


def _within_map(value: Any, path: Path, change: Change) -> Any:
    members = value.get("M")
    if members is None:
        return change(value)
    for name, rest in readings(path):
        if name in members:
            new = _within(members[name], rest, change)
            others = {other: one for other, one in members.items() if other != name}
            members = others if new is GONE else {**members, name: new}
    return {"M": members}


def _within_set(value: Any, path: Path, change: Change) -> Any:
    """Return a set whose members are all masked, whichever the path names: members of a set have no number.

    What replaces it is a set of strings; GONE when nothing is left. Anything but a set is changed whole.
    """
    ((tag, inner),) = value.items()
    if path or tag not in SETS:
        return change(value)
    masked = [change({SETS[tag]: member}) for member in inner]
    left = sorted({one["S"] for one in masked if one is not GONE})
    return {"SS": left} if left else GONE
