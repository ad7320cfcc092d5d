"""Select, drop and rename attributes of a change's images. Values are decoded only where a path leads into them. Pure.

Only the images change: `Keys`, and the Kafka key, name the item and stay what they are. `enriched.NAME` is what was added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from models.attribute_path import Path, is_added, parse, readings
from pipeline.steps.event import Event, Item, Step, each

Wanted: TypeAlias = Mapping[str, list[Path]]
"""By the name of an attribute, the paths within it; an empty one is all of it."""
GONE: Any = object()
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def select(names: Sequence[str]) -> Step:
    """Return the step that keeps these attributes, in the order of the item."""
    own, added = _apart(names)

    def keep(event: Event) -> None:
        _images(event, lambda item: _each(item, own, _only, keeps=False))
        event.added = _each(event.added, added, _only, keeps=False)

    return each(keep)


def drop(names: Sequence[str]) -> Step:
    """Return the step that leaves these attributes out."""
    own, added = _apart(names)

    def leave_out(event: Event) -> None:
        if own:
            _images(event, lambda item: _each(item, own, _without, keeps=True))
        if added:
            event.added = _each(event.added, added, _without, keeps=True)

    return each(leave_out)


def rename_attributes(names: Mapping[str, str]) -> Step:
    """Return the step that gives attributes new names, in the map in which they are; one that has the new name is replaced."""
    paths = {parse(old): new for old, new in names.items()}
    own = _renaming({path: new for path, new in paths.items() if not is_added(path)})
    added = _renaming(
        {path[1:]: new.removeprefix("enriched.") for path, new in paths.items() if is_added(path)},
    )

    def change(event: Event) -> None:
        if own is not None:
            _images(event, own)
        if added is not None:
            event.added = added(event.added)

    return each(change)


def _apart(names: Sequence[str]) -> tuple[Wanted, Wanted]:
    """Return what is named of the item's own attributes, and of what was added."""
    own: dict[str, list[Path]] = {}
    added: dict[str, list[Path]] = {}
    for path in map(parse, names):
        for name, rest in readings(path[1:] if is_added(path) else path):
            (added if is_added(path) else own).setdefault(name, []).append(rest)
    return own, added


def _images(event: Event, change: Callable[[Item], Item]) -> None:
    if (before := event.before) is not None:
        event.before = change(before)
    if (after := event.after) is not None:
        event.after = change(after)


def _each(item: Item, wanted: Wanted, change: Callable[[Any, list[Path]], Any], *, keeps: bool) -> Item:
    """Return an item whose named attributes are changed by their paths; of the others, all or none are kept."""
    found: Item = {}
    for name, value in item.items():
        if (paths := wanted.get(name)) is None:
            if keeps:
                found[name] = value
        elif () in paths:  # all of it
            if not keeps:
                found[name] = value
        elif (new := change(_decode(value), paths)) is not GONE:
            found[name] = msgspec.Raw(msgspec.json.encode(new))
    return found


def _only(value: Any, paths: list[Path]) -> Any:
    """Return of a value what some paths lead to; GONE when they lead to nothing."""
    if () in paths:
        return value
    inner = {name: paths_of for name, one in value.get("M", {}).items() if (paths_of := _rests(paths, name))}
    if "M" in value:
        kept = {name: _only(value["M"][name], some) for name, some in inner.items()}
        members = {name: one for name, one in kept.items() if one is not GONE}
        return {"M": members} if members else GONE
    elements = [_only(one, some) for n, one in enumerate(value.get("L", ())) if (some := _rests(paths, n))]
    elements = [element for element in elements if element is not GONE]
    return {"L": elements} if elements else GONE


def _without(value: Any, paths: list[Path]) -> Any:
    """Return a value without what some paths lead to."""
    if () in paths:
        return GONE
    if "M" in value:
        left = {name: _without(one, some) if (some := _rests(paths, name)) else one for name, one in value["M"].items()}
        return {"M": {name: one for name, one in left.items() if one is not GONE}}
    if "L" in value:
        elements = [
            _without(one, some) if (some := _rests(paths, number)) else one for number, one in enumerate(value["L"])
        ]
        return {"L": [element for element in elements if element is not GONE]}
    return value


def _rests(paths: list[Path], at: str | int) -> list[Path]:
    """Return what is left of the paths that lead on by a name, or the number of an element."""
    if isinstance(at, str):
        return [rest for path in paths for name, rest in readings(path) if name == at]
    return [path[1:] for path in paths if path[0] is None or path[0] == at]


def _renaming(paths: Mapping[Path, str]) -> Callable[[Item], Item] | None:
    """Return what gives attributes new names; None when there is nothing to do."""
    if not paths:
        return None
    top: dict[str, str] = {}
    deep: list[tuple[Path, str]] = []
    for path, new in paths.items():
        for name, rest in readings(path):
            if rest:
                deep.append(((name, *rest), new))
            else:
                top[name] = new

    def change(item: Item) -> Item:
        for (name, *rest), new in deep:
            if name in item:
                value = _decode(item[str(name)])
                item = {**item, str(name): msgspec.Raw(msgspec.json.encode(_renamed_within(value, tuple(rest), new)))}
        return _renamed(item, top)

    return change


def _renamed_within(value: Any, path: Path, new: str) -> Any:
    first = path[0]
    if "L" in value and not isinstance(first, str):
        return {
            "L": [
                _renamed_within(one, path[1:], new) if first is None or first == number else one
                for number, one in enumerate(value["L"])
            ]
        }
    if "M" not in value or not isinstance(first, str):
        return value
    members = value["M"]
    for name, rest in readings(path):
        if name in members:
            inner = {**members, name: _renamed_within(members[name], rest, new)} if rest else None
            members = _renamed(members, {name: new}) if inner is None else inner
    return {"M": members}


def _renamed(item: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    taken = {names[old] for old in names if old in item}
    return {names.get(name, name): value for name, value in item.items() if name in names or name not in taken}
