"""Drop what was seen: of the changes of a batch, which are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.change import MalformedChangeError, event_id, event_ids
from models.snapshot import PREFIX


class Deduplicated(NamedTuple):
    """What became of the changes of a batch."""

    fresh: Sequence[bool]
    """For each change whether it is new."""
    duplicates: int
    """How many were seen before."""
    rejected: list[tuple[int, Exception]]
    """Indices of those without an event ID, with the reason."""
    snapshot: bool
    """Whether parts of a snapshot are among them."""


def deduplicate(values: Sequence[bytes], add_new: Callable[[Sequence[str]], Sequence[bool]]) -> Deduplicated:
    """Part a batch of changes into new ones, duplicates, and those without an event ID.

    `add_new` remembers event IDs and says for each whether it is new.
    """
    try:
        ids = event_ids(values)
    except (MalformedChangeError, RecursionError):
        return _one_by_one(values, add_new)
    fresh = add_new(ids)
    return Deduplicated(fresh, len(fresh) - sum(fresh), [], PREFIX in "".join(ids))


def _one_by_one(values: Sequence[bytes], add_new: Callable[[Sequence[str]], Sequence[bool]]) -> Deduplicated:
    ids: dict[int, str] = {}
    rejected: list[tuple[int, Exception]] = []
    for index, value in enumerate(values):
        try:
            ids[index] = event_id(value)
        except (MalformedChangeError, RecursionError) as error:
            rejected.append((index, error))
    new = dict(zip(ids, add_new(list(ids.values())), strict=True))
    fresh = [new.get(index, False) for index in range(len(values))]
    return Deduplicated(fresh, len(ids) - sum(fresh), rejected, PREFIX in "".join(ids.values()))
