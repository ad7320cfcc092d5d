"""Join the rows of a snapshot with the changes of the stream: a row counts as long as the stream has not spoken.

A row is what its item was when the scan read it. Once the stream has delivered a change of the item after the snapshot's
beginning, it delivers all that follow, so the row can add nothing, and could only make the item older: it is dropped. While
the stream has delivered nothing, no newer change can have come before the row (docs/decisions/0017).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from models.change import MalformedChangeError, decode
from models.snapshot import BEGIN, END, SnapshotPart, part


class DeliveredMemory(Protocol):
    """What is remembered of one partition while a snapshot runs; part of the slice."""

    def runs(self, table: str, snapshot: str | None = None) -> bool:
        """Say whether this snapshot, or any, runs on the table."""

    def begin(self, table: str, snapshot: str) -> None:
        """From here on the items that the stream delivers are remembered."""

    def end(self, table: str, snapshot: str) -> None:
        """Forget what was remembered for the snapshot."""

    def remember(self, table: str, key: bytes) -> None:
        """Take note that the stream has delivered a change of this item."""

    def delivered(self, table: str, snapshot: str, key: bytes) -> bool:
        """Say whether it has, since the snapshot's beginning."""


class Admitted(NamedTuple):
    """Which records of a batch pass; how many rows do, and how many the stream was ahead of."""

    keep: list[bool]
    written: int
    superseded: int


def admit(records: Iterable[tuple[bytes | None, bytes]], memory: DeliveredMemory) -> Admitted:
    """Follow the keys and values of a partition, in order; marks do not pass, nor do rows that the stream is ahead of."""
    keep: list[bool] = []
    written = superseded = 0
    for key, value in records:
        try:
            table, of = _look(value)
        except (MalformedChangeError, RecursionError):
            keep.append(True)  # transform will reject it
            continue
        if of is None:
            if key is not None and memory.runs(table):
                memory.remember(table, key)
            keep.append(True)
        elif of.what == BEGIN:
            memory.begin(of.table, of.snapshot)
            keep.append(False)
        elif of.what == END:
            memory.end(of.table, of.snapshot)
            keep.append(False)
        else:  # a row whose snapshot has ended was cancelled with it
            counts = memory.runs(table, of.snapshot) and not memory.delivered(table, of.snapshot, key or b"")
            written += counts
            superseded += not counts
            keep.append(counts)
    return Admitted(keep, written, superseded)


def _look(value: bytes) -> tuple[str, SnapshotPart | None]:
    if value.startswith(b'{"eventID":"snapshot:'):  # a mark, which is not a change
        of = part(value[12 : value.index(b'"', 12)].decode())
        return (of.table if of else ""), of
    change = decode(value)
    return change.table, part(change.event_id)
