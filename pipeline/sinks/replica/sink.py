"""The replica: another DynamoDB table that is kept equal to a captured one.

Nothing is remembered of what was written but the versions beside the items: what comes again, from an earlier try, a former
owner or a zombie, is older or the same, and DynamoDB itself refuses it. So each item ends with its newest change, in
whatever order and how often changes come. On the way an item may be seen in fewer steps than there were: of the
changes of an item that are written together, the newest is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event
from typing import cast

from confluent_kafka import Message
from faust.types import TP

from pipeline.errors import HeadwaterError, RejectedError, TransientError
from pipeline.settings.sinks import ReplicaSettings
from pipeline.sinks.base import NOTHING, Flushed, Rejected, Sink, Writer
from pipeline.sinks.moves import Moves
from pipeline.sinks.replica.changes import ReplicaItem, ReplicaWrite, newest_first, write_of
from pipeline.sinks.replica.table import ReplicaTable
from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log

CALLS = 4
"""Calls under way at once for a partition that is being written, on average."""
FLUSH_CHANGES = 2_000
"""Changes of a flush at most: a second or two of calls, so that offsets follow and a worker can stop."""


@dataclass(slots=True)
class _Applied:
    """What became of the writes of an item."""

    done: ReplicaItem | None = None
    """The item, when nothing of it is left to be tried."""
    kinds: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    error: HeadwaterError | None = None


class ReplicaWriter(Writer):
    """One partition of a sink topic on its way to the tables of a replica."""

    def __init__(self, start: int, table: ReplicaTable, settings: ReplicaSettings, calls: ThreadPoolExecutor) -> None:
        self.position = self._end = self._there = start
        self._table, self._settings, self._calls = table, settings, calls
        self._moves = Moves(settings.sinks)
        self._writes: list[ReplicaWrite] = []
        self._size = 0
        self._given = 0
        """How many writes the flush under way has; after an error it has the same again."""
        self._done: set[ReplicaItem] = set()
        """The items of that flush that are written."""
        self._counts: Counter[str] = Counter()
        self._rejected: list[Rejected] = []

    def add(self, records: Sequence[Message], end: int) -> Sequence[Rejected]:
        """Take records; those that are not changes are rejected."""
        rejected, writes = [], []
        for record in records:
            try:
                one = write_of(record, self._settings)
                if one.image is not None or not self._moves.stays(record):
                    writes.append(one)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                rejected.append(Rejected(record, error))
        self._writes += writes
        self._size += sum(len(write.record) for write in writes)
        self._end = end
        return rejected

    @property
    def size(self) -> int:
        """Bytes of the records that wait."""
        return self._size

    def is_due(self, now: float) -> bool:
        """Say whether there is anything to do: while it is done, more gathers for the next time."""
        return self._end > self._there

    def flush(self) -> Flushed:
        """Apply the oldest records that wait, of each item the newest; return how far that went."""
        self._given = self._given or min(len(self._writes), FLUSH_CHANGES)
        given = self._writes[: self._given]
        halt = Event()
        items = [some for some in newest_first(given) if some[0].place not in self._done]
        under_way = [self._calls.submit(self._apply, some, halt) for some in items]
        wait(under_way)
        errors: list[HeadwaterError] = []
        for applied in (future.result() for future in under_way):
            if applied.error is not None:
                errors.append(applied.error)
            elif applied.done is not None:
                self._done.add(applied.done)
                self._rejected += applied.rejected
                self._counts.update(applied.kinds)
        left = next((n for n, one in enumerate(given) if one.place not in self._done), len(given))
        if stops := [error for error in errors if not isinstance(error, TransientError)]:
            raise stops[0]
        if errors and not left:
            raise errors[0]
        # Of a table that throttles, what was done counts: the rest is tried at once, and not later and later.
        self._writes, self._given = self._writes[left:], len(given) - left
        self._size -= sum(len(incoming.record) for incoming in given[:left])
        self._there = cast("int", self._writes[0].record.offset()) if self._writes else self._end
        flushed = Flushed(self._there, dict(self._counts), tuple(self._rejected))
        self._counts, self._rejected = Counter(), []
        if not self._given:
            self._done = set()
        return flushed

    def _apply(self, writes: Sequence[ReplicaWrite], halt: Event) -> _Applied:
        """Apply the first of the writes of an item that the table takes; in a thread of the calls."""
        applied = _Applied()
        try:
            for write in writes:
                if halt.is_set():
                    return applied
                try:
                    applied.kinds.append(self._table.apply(write))
                    break
                except RejectedError as error:
                    applied.rejected.append(Rejected(write.record, error))
        except HeadwaterError as error:
            halt.set()  # the items that are not begun are tried with this one again
            applied.error = error
        else:
            applied.done = writes[0].place
        return applied


class Replica(Sink):
    """The tables of a replica."""

    name = "replica"

    def __init__(self, settings: ReplicaSettings, table: ReplicaTable) -> None:
        self._settings, self._table = settings, table
        self.threads = settings.threads
        self._calls = ThreadPoolExecutor(calls(settings), "replica-call")

    def open(self, tp: TP, start: int, log: Log = UNKNOWN, committed: Committed = NOTHING) -> ReplicaWriter:
        """Take a partition over: nothing has to be asked, the versions are with the items."""
        return ReplicaWriter(start, self._table, self._settings, self._calls)

    def close(self) -> None:
        """End the threads."""
        self._calls.shutdown()


def calls(settings: ReplicaSettings) -> int:
    """Return how many calls a worker has under way at once."""
    return settings.threads * CALLS
