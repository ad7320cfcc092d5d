"""Where a partition is read from when it comes to a worker: a decision, not a reset policy. Pure.

The group has committed nothing: where the settings say. Before the first record that is left: a gap, then on behind it.
Beyond the end, or in another log than the one that is there: no offset of it means anything here, so the worker stops; but
for readers whose destinations' names carry the log (the sinks of Headwater): they begin with the new log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from faust.types import TP

from pipeline.errors import FatalError
from pipeline.transport.committed import Committed
from pipeline.transport.logs import Log

First = Literal["earliest", "latest"]
"""Where a group begins that has committed nothing yet: as Faust's setting `consumer_auto_offset_reset` has it."""


@dataclass(frozen=True, slots=True)
class PartitionState:
    """What is there of a partition."""

    committed: Committed
    log: Log
    low: int
    """Offset of the first record that is left."""
    end: int
    """The offset after the last one, records of undecided transactions included."""


@dataclass(frozen=True, slots=True)
class LostRecords:
    """Records that Kafka has deleted (retention) before the group read them."""

    tp: TP
    log: Log
    group: str
    first: int
    """Offset of the first one."""
    end: int
    """The offset after the last one: that of the first record that is left."""

    def __str__(self) -> str:
        return (
            f"{self.tp.topic}[{self.tp.partition}]: offsets {self.first} to {self.end - 1} ({self.end - self.first} at most) "
            f"were deleted by retention before the group {self.group} read them"
        )


@dataclass(frozen=True, slots=True)
class PartitionStart:
    """Where to read from."""

    offset: int
    lost: LostRecords | None = None
    is_renewed: bool = False
    """Whether it is the beginning of another log than the one that was read before."""


def start_of(
    tp: TP, there: PartitionState, group: str, *, first: First = "earliest", renews: bool = False
) -> PartitionStart:
    """Return where a partition is read from; raise FatalError where that cannot be known. Its offset must be stable."""
    committed, log = there.committed, there.log
    if committed.offset is None:
        return PartitionStart(there.low if first == "earliest" else there.end)
    if not committed.log.may_be(log):
        if renews:
            return PartitionStart(there.low, is_renewed=True)
        raise FatalError(
            f"the group {group} has read {tp.topic}[{tp.partition}] up to offset {committed.offset} of another log: "
            f"{committed.log.difference(log)}",
            hint=accept_command(tp.topic),
        )
    if committed.offset > there.end:
        if renews and not committed.log.topic_id:  # an earlier version has committed it, in a log that is gone
            return PartitionStart(there.low, is_renewed=True)
        raise FatalError(
            f"the group {group} has committed offset {committed.offset} of {tp.topic}[{tp.partition}], which ends at "
            f"{there.end}: records were lost there, or the topic was recreated",
            hint=accept_command(tp.topic),
        )
    if committed.offset < there.low:
        return PartitionStart(there.low, LostRecords(tp, log, group, committed.offset, there.low))
    return PartitionStart(committed.offset)


def accept_command(topic: str) -> str:
    """Return the command that continues with a topic as it is now."""
    return f"headwater positions accept {topic}; docs/how-to/trouble.md"
