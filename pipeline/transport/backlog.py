"""The backlog: what was fetched or offered and not delivered yet, by partition."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from faust.types import TP

from pipeline.transport.participant import is_virtual

FULL, FULL_BYTES = 12_000, 32 << 20
"""Records, and bytes of their values, in all queues above which the reader takes one record at a time."""
PARTITION_FULL, PARTITION_BYTES = 60_000, 64 << 20
"""The same in one queue above which its partition is paused (which throws away what librdkafka has prefetched), and in the
queues of all held partitions together above which all of them are."""


Run = tuple[list[Any], int]
"""Records in order, and the bytes of their values. What sources offer is not a message of Kafka and counts as nothing: it is
bounded by themselves."""


def size_of(records: list[Any]) -> int:
    """Return the bytes of the values."""
    return sum(map(len, records))


class Backlog:
    """Queues of records by partition, in runs as they were fetched. Lives on the event loop; no locks.

    Held partitions (their state is being recovered) keep their records until they are released.
    """

    def __init__(self) -> None:
        self.queues: dict[TP, deque[Run]] = {}
        self.held: dict[TP, set[str]] = {}
        """Partitions that do not run, and for whom: each holder releases for itself."""
        self.paused: frozenset[TP] = frozenset()
        """Partitions that are idle with a long queue: the reader pauses them."""
        self.has_room = threading.Event()
        """Clear while the queues hold so much that the reader must slow down. The one thing here that its thread looks at."""
        self.has_room.set()
        self._crowded = False
        """Whether held partitions are paused, all of them."""
        self._sizes: dict[TP, list[int]] = {}
        """Records and bytes in each queue."""
        self._turn = 0

    def add(self, tp: TP, records: list[Any], size: int) -> None:
        """Append a run of records of a partition, of so many bytes; the list is the backlog's from here on."""
        self._count(tp, len(records), size)
        self.queues.setdefault(tp, deque()).append((records, size))

    def give_back(self, tp: TP, records: list[Any]) -> None:
        """Put records that were delivered in vain to the front again, in their order."""
        size = 0 if is_virtual(tp.topic) else size_of(records)
        self._count(tp, len(records), size)
        self.queues.setdefault(tp, deque()).appendleft((records, size))

    def _count(self, tp: TP, records: int, size: int) -> None:
        counts = self._sizes.setdefault(tp, [0, 0])
        counts[0] += records
        counts[1] += size

    def drop(self, tp: TP) -> None:
        """Forget a partition."""
        self.queues.pop(tp, None)
        self.held.pop(tp, None)
        self._sizes.pop(tp, None)

    def take(self, tp: TP, most: int, most_bytes: int) -> Run:
        """Take records from the front of a partition: at least one, up to `most` and `most_bytes` of values."""
        queue = self.queues[tp]
        records, size = queue.popleft()
        while queue and len(records) + len(queue[0][0]) <= most:
            more, weight = queue.popleft()
            records += more
            size += weight
        if len(records) > most or (size > most_bytes and len(records) > 1):
            keep = _fitting(records, most, most_bytes)
            kept = size_of(records[:keep]) if size else 0
            queue.appendleft((records[keep:], size - kept))
            records, size = records[:keep], kept
        self._count(tp, -len(records), -size)
        return records, size

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
        """Decide again whether the reader must slow down and which partitions to pause."""
        records = size = held_records = held_size = 0
        paused = set()
        for tp, (count, weight) in self._sizes.items():
            if is_virtual(tp.topic):
                continue
            share = 2 if tp in self.paused else 1  # paused until half of it has gone
            if count * share > PARTITION_FULL or weight * share > PARTITION_BYTES:
                paused.add(tp)
            elif tp not in self.held:
                records += count
                size += weight
            else:
                held_records += count
                held_size += weight
        share = 2 if self._crowded else 1
        self._crowded = held_records * share > PARTITION_FULL or held_size * share > PARTITION_BYTES
        if self._crowded:
            paused.update(tp for tp in self.held if not is_virtual(tp.topic))
        if paused != self.paused:
            self.paused = frozenset(paused)
        if records > FULL or size > FULL_BYTES:
            self.has_room.clear()
        else:
            self.has_room.set()


def _fitting(records: list[Any], most: int, most_bytes: int) -> int:
    """Return how many records, one at least, hold at most so many bytes."""
    keep, left = 1, most_bytes
    while keep < min(most, len(records)) and (left := left - len(records[keep - 1])) >= len(records[keep]):
        keep += 1
    return keep
