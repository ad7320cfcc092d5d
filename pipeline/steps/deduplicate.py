"""Drop what was seen: of the changes of a batch, which are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import NamedTuple

from models.change import MalformedChangeError, event_id, event_ids


class Deduplicated(NamedTuple):
    """Indices into the batch, in order; every index is in one of the three, or is a rejected one with its reason."""

    fresh: list[int]
    duplicates: list[int]
    rejected: list[tuple[int, Exception]]


def deduplicate(values: Sequence[bytes], add_new: Callable[[Sequence[str]], Sequence[bool]]) -> Deduplicated:
    """Part a batch of changes into new ones, duplicates, and those without an event ID.

    `add_new` remembers event IDs and says for each whether it is new.
    """
    rejected: list[tuple[int, Exception]] = []
    indices: Sequence[int] = range(len(values))
    try:
        ids = event_ids(values)
    except (MalformedChangeError, RecursionError):
        indices, ids = [], []
        for index, value in enumerate(values):
            try:
                ids.append(event_id(value))
            except (MalformedChangeError, RecursionError) as error:
                rejected.append((index, error))
            else:
                indices.append(index)
    new = add_new(ids)
    duplicates = [index for index, is_new in zip(indices, new, strict=True) if not is_new]
    return Deduplicated(list(compress(indices, new)), duplicates, rejected)
