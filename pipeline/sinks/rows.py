"""Changes on their way into tables, column by column: what is said of them is said of many at once, not of each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import cast

from confluent_kafka import Message

from models.change import Change, Op, check, decode_unchecked
from pipeline.sinks.base import Rejected

EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_800_000_000
"""Microseconds that have a date of four digits: from the first, before the second."""
PIECE = 2_048
"""Records that are read at once: what is made of them is used again while it is in the processor's cache."""
OVERHEAD = 1_100
"""Bytes that a decoded change and its record take beside the value."""
KINDS = 10_000
"""Kinds that are remembered: a stream that is switched off and on has a new ARN."""
_kind_of = attrgetter("event_name", "table_name", "arn", "event_source", "record_format", "body.precision")
_created = attrgetter("body.created")


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What many changes have in common. There is one object of each kind: they are compared by identity."""

    table: str
    op: Op
    source: str
    unit: int
    """What their times count, in microseconds."""


@dataclass(slots=True)
class Rows:
    """Changes as they are in a partition of a sink topic, in order; all lists have the same length."""

    offsets: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    """When each happened, in microseconds since the epoch."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of the messages."""
    records: list[Message] = field(default_factory=list)
    """The messages themselves: one that cannot be written becomes a dead letter."""

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def topic(self) -> str:
        """The sink topic that they are in; '' where there are none."""
        return self.records[0].topic() or "" if self.records else ""

    @property
    def size(self) -> int:
        """Bytes that they take in memory, roughly."""
        return sum(self.sizes) + OVERHEAD * len(self)

    def extend(self, later: Rows) -> None:
        """Take over what follows."""
        self.offsets += later.offsets
        self.keys += later.keys
        self.changes += later.changes
        self.kinds += later.kinds
        self.times += later.times
        self.sizes += later.sizes
        self.records += later.records

    def take(self, places: Sequence[int]) -> Rows:
        """Return those at these places."""
        columns = self.offsets, self.keys, self.changes, self.kinds, self.times, self.sizes, self.records
        return Rows(*([column[place] for place in places] for column in columns))  # type: ignore[arg-type]


class RowReader:
    """Reads records as far as every table needs it. One for each partition: it is used by one thread at a time."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, ...], Kind] = {}

    def read(self, records: Sequence[Message]) -> Iterator[tuple[Rows, list[Rejected]]]:
        """Yield rows, piece by piece, and beside them the records of the piece that are not changes with a time and a key."""
        for begin in range(0, len(records), PIECE):
            piece = records[begin : begin + PIECE]
            try:
                yield self._rows(piece), []
            except Exception:  # noqa: BLE001 - one of them at least; the others continue
                yield self._one_by_one(piece)

    def _one_by_one(self, records: Sequence[Message]) -> tuple[Rows, list[Rejected]]:
        rows, rejected = Rows(), []
        for record in records:
            try:
                rows.extend(self._rows([record]))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                rejected.append(Rejected(record, error))
        return rows, rejected

    def _rows(self, records: Sequence[Message]) -> Rows:
        values = [record.value() or b"" for record in records]
        keys = [record.key() or b"" for record in records]
        for texts in (values, keys):  # as columns they must be UTF-8
            if not all(map(bytes.isascii, texts)):
                for text in texts:
                    text.decode()
        changes = decode_unchecked(values)
        kinds = self._kinds_of(changes)
        times = times_of(changes, kinds)
        offsets = cast("list[int]", [record.offset() for record in records])
        return Rows(offsets, keys, changes, kinds, times, list(map(len, values)), list(records))

    def _kinds_of(self, changes: Sequence[Change]) -> list[Kind]:
        marks = list(map(_kind_of, changes))
        known = self._kinds
        if len(known) > KINDS:
            known.clear()
        for mark, change in zip(marks, changes, strict=True):
            if mark not in known:
                check(change)
                known[mark] = Kind(change.table, change.op, change.source, change.unit)
        return [known[mark] for mark in marks]


def times_of(changes: Sequence[Change], kinds: Sequence[Kind]) -> list[int]:
    """Return when changes happened; raise ValueError when a time has no date."""
    import numpy as np  # noqa: PLC0415 - an extra; names of files are known without it

    units = np.fromiter((kind.unit for kind in kinds), np.int64, len(kinds))
    times = np.rint(np.fromiter(map(_created, changes), np.float64, len(changes)) * units)
    if not ((times >= EARLIEST) & (times < LATEST)).all():
        out = next(c for c, time in zip(changes, times, strict=True) if not EARLIEST <= time < LATEST)
        raise ValueError(f"ApproximateCreationDateTime is out of range: {out.body.created}")
    return cast("list[int]", times.astype(np.int64).tolist())
