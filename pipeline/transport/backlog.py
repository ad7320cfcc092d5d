"""The backlog: what was fetched or offered and not delivered yet, by partition."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from faust.types import TP

from pipeline.transport.participant import is_virtual

FULL = 12_000
"""Records in all queues above which the reader takes one record at a time."""
PARTITION_FULL = 60_000
"""Records in one queue above which its partition is paused (which throws away what librdkafka has prefetched)."""


class Backlog:
    """Queues of records by partition. Lives on the event loop; no locks.

    Held partitions (their state is being recovered) keep their records until they are released.
    """

    def __init__(self) -> None:
        self.queues: dict[TP, deque[Any]] = {}
        self.held: dict[TP, set[str]] = {}
        """Partitions that do not run, and for whom: each holder releases for itself."""
        self.standing: frozenset[TP] = frozenset()
        """Partitions that stand still with a long queue: the reader pauses them."""
        self.full = False
        self._turn = 0

    def add(self, tp: TP, records: Iterable[Any]) -> None:
        """Append records of a partition."""
        self.queues.setdefault(tp, deque()).extend(records)

    def give_back(self, tp: TP, records: list[Any]) -> None:
        """Put records that were delivered in vain to the front again, in their order."""
        self.queues.setdefault(tp, deque()).extendleft(reversed(records))

    def drop(self, tp: TP) -> None:
        """Forget a partition."""
        self.queues.pop(tp, None)
        self.held.pop(tp, None)

    def take(self, tp: TP, most: int) -> list[Any]:
        """Take up to `most` records from the front of a partition."""
        queue = self.queues[tp]
        if len(queue) <= most:
            records = list(queue)
            queue.clear()
        else:
            records = [queue.popleft() for _ in range(most)]
        return records

    def next(self, allowed: Callable[[TP], bool]) -> TP | None:
        """Return the partition whose turn it is among those with records, in rotation, or None."""
        partitions = list(self.queues)
        for step in range(len(partitions)):
            index = (self._turn + step) % len(partitions)
            tp = partitions[index]
            if self.queues[tp] and tp not in self.held and allowed(tp):
                self._turn = index + 1
                return tp
        return None

    def any(self, allowed: Callable[[TP], bool]) -> bool:
        """Say whether an allowed partition has records; takes nobody's turn."""
        return any(queue and tp not in self.held and allowed(tp) for tp, queue in self.queues.items())

    def measure(self) -> None:
        """Decide anew whether the reader must slow down and which partitions to pause."""
        sizes = {tp: len(queue) for tp, queue in self.queues.items() if not is_virtual(tp.topic)}
        self.standing = frozenset(
            tp for tp, size in sizes.items() if size > (PARTITION_FULL // 2 if tp in self.standing else PARTITION_FULL)
        )
        running = sum(size for tp, size in sizes.items() if tp not in self.standing and tp not in self.held)
        self.full = running > FULL
