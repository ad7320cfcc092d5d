"""Finding the one record at which an agent raises, so that it can be dead-lettered and the others done.

The slice in which an agent raised is aborted and redone: the records of the failed batch one by one, until one of them alone
fails. It is delivered a third time, marked with the error, for the agent to write it away instead of processing it.
"""

from __future__ import annotations

from faust.types import TP

from pipeline.transport.batch import Batch
from pipeline.transport.participant import Slice

POISONED_IN_A_ROW = 100
"""Poisoned records without a good batch between them after which the fault is taken to be the agent's, not the records'."""


class Poison:
    """Which records are under suspicion, and which were found out. On the event loop."""

    def __init__(self) -> None:
        self.suspects: dict[TP, int] = {}
        """Partitions whose records are delivered one by one, up to this offset."""
        self._found: dict[TP, dict[int, Exception]] = {}
        self._in_a_row = 0

    def blame(self, batch: Batch, error: Exception) -> bool:
        """Take note of a batch at which an agent has raised; False: too many in a row, it must be the agent."""
        tp = TP(batch.topic, batch.partition)
        self.suspects[tp] = max(batch.last_offset, self.suspects.get(tp, -1))
        if len(batch) == 1:
            self._found.setdefault(tp, {})[batch.first_offset] = error
            self._in_a_row += 1
        return self._in_a_row <= POISONED_IN_A_ROW

    def mark(self, batch: Batch) -> None:
        """Mark a batch that is about to be delivered when its one record was found out."""
        if len(batch) == 1:
            batch.error = self._found.get(TP(batch.topic, batch.partition), {}).get(batch.first_offset)

    def committed(self, work: Slice) -> None:
        """Clear those of suspicion whose last suspect is committed."""
        for tp, offset in work.offsets.items():
            if tp not in self.suspects:
                self._in_a_row = 0
            elif offset > self.suspects[tp]:
                self.drop(tp)

    def drop(self, tp: TP) -> None:
        """Forget a partition."""
        self.suspects.pop(tp, None)
        self._found.pop(tp, None)
