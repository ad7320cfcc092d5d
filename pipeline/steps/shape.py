"""Select, drop and rename attributes of a change's images. Values are not decoded. Pure.

Only the images change: `Keys`, and the Kafka key, name the item and stay what they are. `enriched.NAME` is what was added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.steps.event import Event, Item, Step, each

ADDED = "enriched."


def select(names: Sequence[str]) -> Step:
    """Return the step that keeps these attributes, in the order of the item."""
    own, added = _apart(names)

    def keep(event: Event) -> None:
        _images(event, lambda item: {name: value for name, value in item.items() if name in own})
        event.added = {name: value for name, value in event.added.items() if name in added}

    return each(keep)


def drop(names: Sequence[str]) -> Step:
    """Return the step that leaves these attributes out."""
    own, added = _apart(names)

    def leave_out(event: Event) -> None:
        if own:
            _images(event, lambda item: {name: value for name, value in item.items() if name not in own})
        for name in added:
            event.added.pop(name, None)

    return each(leave_out)


def rename(names: Mapping[str, str]) -> Step:
    """Return the step that gives attributes new names; one that has the new name already is replaced."""
    own = {old: new for old, new in names.items() if not old.startswith(ADDED)}
    added = {old.removeprefix(ADDED): new.removeprefix(ADDED) for old, new in names.items() if old.startswith(ADDED)}

    def change(event: Event) -> None:
        if own:
            _images(event, lambda item: _renamed(item, own))
        if added:
            event.added = _renamed(event.added, added)

    return each(change)


def _renamed(item: Item, names: Mapping[str, str]) -> Item:
    taken = {names[old] for old in names if old in item}
    return {names.get(name, name): value for name, value in item.items() if name in names or name not in taken}


def _apart(names: Sequence[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the item's own attributes, and of what was added."""
    added = frozenset(name.removeprefix(ADDED) for name in names if name.startswith(ADDED))
    return frozenset(name for name in names if not name.startswith(ADDED)), added


def _images(event: Event, change: Callable[[Item], Item]) -> None:
    if (before := event.before) is not None:
        event.before = change(before)
    if (after := event.after) is not None:
        event.after = change(after)
