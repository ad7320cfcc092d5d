"""The contract of sinks: what takes the messages of the sink topics somewhere else, each once.

`SinkRunner` (runner.py) keeps it for all; tests/conformance/test_sinks.py holds every sink to it (Pub/Sub at least once):

1. `open` takes a partition of a log over. Whoever had it before can write nothing more to it that a reader would see, or
   what it writes is the very same. The writer's `position` is the offset from which on the destination wants records.
   What the destination has of another log of the same name (the topic was recreated, the cluster is another one) says
   nothing of this one: its offsets are compared with none of these.
2. `add` takes records that are committed to the sink topic, in order, none of them before `position`; in memory alone.
   A record that can never be written is returned with the reason, and becomes a dead letter; the rest continues.
3. `flush` brings what was added to the destination, and returns the offset up to which everything is there permanently. Only
   then does the group's offset move. It may fail with TransientError anywhere: it is called again, with the same records
   and perhaps more, in this process or, after a crash, in another one. Neither loses or doubles a record.
4. `close` forgets what was not flushed. It is read again from the group's offset.

`open`, `add` and `flush` run in threads of the sink, never two at once for one partition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from confluent_kafka import Message
from faust.types import TP

from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log

NOTHING = Committed(None)
"""What a group has of a partition that it has never committed."""

OffsetIsOf = Literal["same", "other", "before", "nothing"]
"""What a group's offset is of: this log, another one, the log that an earlier version did not name; or there is none."""


def offset_is_of(log: Log, committed: Committed, start: int) -> OffsetIsOf:
    """Say what a group's offset is of, for a partition whose log is this one and that is read from `start` on."""
    if committed.offset is None:
        return "nothing"
    if committed.log == UNKNOWN:
        return "before" if committed.offset <= start else "other"  # it lies beyond what is there
    return "same" if committed.log.may_be(log) else "other"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that can never be written, and why."""

    record: Message
    error: Exception


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush did."""

    end: int
    """Everything before this offset is at the destination permanently."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """For the metric headwater_delivered: what was written, by kind: files, rows, records, items."""
    rejected: Sequence[Rejected] = ()
    """Records that the destination refuses permanently."""


class Writer(ABC):
    """One partition of a sink topic on its way to a destination."""

    position: int = 0
    """The first offset that the destination does not have, as far as it can tell; records before it are not added."""

    @abstractmethod
    def add(self, records: Sequence[Message], end: int) -> Sequence[Rejected]:
        """Take records in memory; `end` is the offset after the last one that was read, be it here or not."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes that are held in memory, roughly."""

    @abstractmethod
    def is_due(self, now: float) -> bool:
        """Say whether it is time to flush; `now` in seconds, of a clock that never goes back."""

    @abstractmethod
    def flush(self) -> Flushed:
        """Bring everything that was added to its destination."""

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Let go of the partition."""


class Sink(ABC):
    """A destination."""

    name: str
    """As in settings, metrics and status: lake, mirror, replica."""
    threads: int = 2
    """Partitions worked on at once in a worker."""
    memory: int = 256 << 20
    """Bytes that all writers of a worker may hold: then partitions are held; from three quarters on the largest is flushed."""

    @abstractmethod
    def open(self, tp: TP, start: int, log: Log = UNKNOWN, committed: Committed = NOTHING) -> Writer:
        """Take a partition over; `start` is the offset from which on the group reads it.

        The first record may lie behind it: ends of transactions, and aborted records, are not records. `log` is the log of
        the topic, `UNKNOWN` where the broker gives no IDs. `committed` is what the group has committed: an offset of this
        log, of another one, of an earlier version (without a log), or nothing; see `offset_is_of`.

        Raises TransientError when the destination may answer later.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give everything back: the worker stops."""
