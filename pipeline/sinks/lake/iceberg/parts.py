"""Up to where a table holds a partition of a log: the properties that change with the data, in one step of the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from faust.types import TP
from pyiceberg.table import Table

from pipeline.sinks.base import Rejected
from pipeline.sinks.lake.paths import mark_of
from pipeline.transport.logs import Log

OFFSET = "headwater.offset/"
"""Property of a table: the offset up to which it holds a partition of a sink topic: `<topic>/<mark of the log>/<partition>`.

An earlier version had `<topic>/<partition>`; so have brokers that give no IDs."""
REFUSED_PROPERTY = "headwater.refused/"
"""Property of a table: offsets before that one that it refuses, as long as the group may come to them again."""


class HeldUpTo(NamedTuple):
    """What a table says of a partition."""

    there: int
    """The offset up to which it may hold it."""
    is_sure: bool
    """Whether that is of our log for certain."""
    refused: frozenset[int]
    former: bool
    """Whether it has the property of an earlier version."""


class CommitOutcome(NamedTuple):
    """What a commit has done."""

    rows: int = 0
    rejected: tuple[Rejected, ...] = ()

    def __add__(self, other: object) -> CommitOutcome:
        if not isinstance(other, CommitOutcome):
            return NotImplemented
        return CommitOutcome(self.rows + other.rows, (*self.rejected, *other.rejected))


@dataclass(slots=True)
class LogPart:
    """A partition of a log, on its way into tables."""

    tp: TP
    begin: int
    """The group's offset: what lies before it does not come again."""
    source: Log
    refused: dict[str, set[int]] = field(default_factory=dict)
    """Offsets that a table has refused, by its name."""

    @property
    def _former(self) -> str:
        return f"{self.tp.topic}/{self.tp.partition}"

    @property
    def _own(self) -> str:
        mark = mark_of(self.source)
        return f"{self.tp.topic}/{mark}/{self.tp.partition}" if mark else self._former

    def held(self, table: Table | None) -> HeldUpTo:
        """Return what a table says of the partition."""
        found: Mapping[str, str] = table.properties if table is not None else {}
        own, former = found.get(f"{OFFSET}{self._own}"), found.get(f"{OFFSET}{self._former}")
        refused = {int(word) for word in found.get(f"{REFUSED_PROPERTY}{self._own}", "").split(",") if word.isdecimal()}
        is_former = former is not None and self._own != self._former
        is_sure = own is not None and bool(self.source.topic_id)
        return HeldUpTo(int(own or former or 0), is_sure, frozenset(refused), is_former)

    def properties(self, name: str, held: HeldUpTo, end: int) -> dict[str, str | None]:
        """Return the properties of a commit up to an offset."""
        refused = self.refused.get(name, set()) | held.refused
        words = ",".join(str(offset) for offset in sorted(refused) if offset >= self.begin)
        found: dict[str, str | None] = {f"{OFFSET}{self._own}": str(end)}
        if words or held.refused:
            found[f"{REFUSED_PROPERTY}{self._own}"] = words or None
        if held.former:
            found[f"{OFFSET}{self._former}"] = str(end)
        return found


def is_of_one_log(properties: Mapping[str, str | None]) -> bool:
    """Say whether all offsets are of one log: only there is an item always in the same partition."""
    places = [name.removeprefix(OFFSET).split("/") for name in properties if name.startswith(OFFSET)]
    topics = {place[0] for place in places}
    marks = {place[1] for place in places if len(place) > 2}
    return len(topics) <= 1 and len(marks) <= 1
