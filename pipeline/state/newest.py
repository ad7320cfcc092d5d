"""The time of the newest change of each item, for as many items as there is room for. In memory (see docs/decisions/0014)."""

from __future__ import annotations

from itertools import islice

from faust.types import TP

from pipeline.transport import Participant, Slice

ITEMS = 100_000
"""Items remembered of a partition: some 25 MB where all have one."""


class NewestTimes(Participant):
    """By partition of a topic. What an aborted slice has brought in is forgotten: it comes again."""

    def __init__(self, topic: str, items: int = ITEMS) -> None:
        self._topic, self._items = topic, items
        self._times: dict[int, dict[bytes, int]] = {}
        self._new: dict[int, dict[bytes, int]] = {}

    def take(self, partition: int, key: bytes, at: int) -> int:
        """Remember that an item changed at this time; return the newest time before, 0 where none is known."""
        new = self._new.setdefault(partition, {})
        before = new.get(key) or self._times.get(partition, {}).get(key, 0)
        new[key] = max(before, at)
        return before

    def committed(self, work: Slice) -> None:
        """Keep what the slice has brought; the items that changed longest ago leave."""
        for partition, new in self._new.items():
            times = self._times.setdefault(partition, {})
            for key, at in new.items():
                times.pop(key, None)
                times[key] = at
            for key in list(islice(times, max(0, len(times) - self._items))):
                del times[key]
        self._new.clear()

    def aborted(self, work: Slice) -> None:
        """Forget what the slice has brought."""
        self._new.clear()

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Forget partitions that are another worker's now."""
        for tp in partitions:
            if tp.topic == self._topic:
                self._times.pop(tp.partition, None)
