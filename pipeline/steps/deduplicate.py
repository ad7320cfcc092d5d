"""Drop what was seen: of the changes of a batch, which are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.change import MalformedChangeError, event_id


class Deduplicated(NamedTuple):
    """Indices into the batch, in order; every index is in one of the three, or is a rejected one with its reason."""

    fresh: list[int]
    duplicates: list[int]
    rejected: list[tuple[int, Exception]]


def deduplicate(values: Sequence[bytes], add_new: Callable[[Sequence[bytes]], Sequence[bool]]) -> Deduplicated:
    """Part a batch of changes into new ones, duplicates, and those without an event ID.

    `add_new` remembers event IDs and says for each whether it is new.
    """
    result = Deduplicated([], [], [])
    indices, ids = [], []
    for index, value in enumerate(values):
        try:
            ids.append(event_id(value))
        except (MalformedChangeError, RecursionError) as error:
            result.rejected.append((index, error))
        else:
            indices.append(index)
    for index, new in zip(indices, add_new(ids), strict=True):
        (result.fresh if new else result.duplicates).append(index)
    return result
