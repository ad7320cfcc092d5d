"""The items that streams have delivered while snapshots of their tables run. On disk, exactly once, by partition.

Each snapshot has its own: what was delivered before it began says nothing, because a gap may lie between. Its items are
dropped when it has ended, some with each slice: there can be millions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import msgspec

from pipeline.errors import FatalError
from pipeline.state.table_partitions import Partitions, TablePartition
from pipeline.transport import Slice, Transport

STATE = b"state"
DROPPED = 5_000
"""Items of a partition that are dropped with one slice at most."""
encode = msgspec.json.encode


class State(msgspec.Struct):
    """What a partition knows of snapshots."""

    running: dict[str, list[str]] = msgspec.field(default_factory=dict)
    """By table the IDs of its snapshots."""
    leaving: list[tuple[str, str]] = msgspec.field(default_factory=list)
    """Tables and snapshots whose items are to be dropped."""


decode = msgspec.json.Decoder(State).decode


class DeliveredItems:
    """One partition's memory within a slice; see `steps.snapshot.DeliveredMemory`."""

    def __init__(self, part: TablePartition, on_end: Callable[[], None] = lambda: None) -> None:
        self._part, self._on_end = part, on_end
        found = part.get(STATE)
        self._state = State() if found is None else decode(found)

    @property
    def active(self) -> bool:
        """Whether any snapshot runs."""
        return bool(self._state.running)

    @property
    def leaving(self) -> list[tuple[str, str]]:
        """Tables and snapshots whose items are to be dropped."""
        return self._state.leaving

    def runs(self, table: str, snapshot: str | None = None) -> bool:
        """Say whether this snapshot, or any, runs on the table."""
        running = self._state.running.get(table, [])
        return bool(running) if snapshot is None else snapshot in running

    def begin(self, table: str, snapshot: str) -> None:
        """From here on the items that the stream delivers are remembered."""
        if not self.runs(table, snapshot):
            self._state.running.setdefault(table, []).append(snapshot)
            self._write()

    def end(self, table: str, snapshot: str) -> None:
        """Forget what was remembered for the snapshot."""
        if not self.runs(table, snapshot):
            return
        running = self._state.running[table]
        running.remove(snapshot)
        if not running:
            del self._state.running[table]
        self._state.leaving.append((table, snapshot))
        self._on_end()
        self._write()

    def remember(self, table: str, key: bytes) -> None:
        """Take note that the stream has delivered a change of this item."""
        for snapshot in self._state.running[table]:
            entry = _entry(table, snapshot, key)
            if self._part.get(entry) is None:
                self._part.write({entry: b"1"})

    def delivered(self, table: str, snapshot: str, key: bytes) -> bool:
        """Say whether it has, since the snapshot's beginning."""
        return self._part.get(_entry(table, snapshot, key)) is not None

    def forget(self, table: str, snapshot: str) -> None:
        """All items of a snapshot have been dropped."""
        self._state.leaving.remove((table, snapshot))
        self._write()

    def _write(self) -> None:
        self._part.write({STATE: encode(self._state)})


def entries_of(table: str, snapshot: str) -> bytes:
    """Return what the keys of the items begin with that are remembered for a snapshot."""
    return f"item/{table}/{snapshot}/".encode()


def _entry(table: str, snapshot: str, key: bytes) -> bytes:
    return entries_of(table, snapshot) + blake2b(key, digest_size=16).digest()


class Delivered(Partitions):
    """Follows the slices; `memory` is for the deduplicate agent."""

    def __init__(self, transport: Transport, topic: str, changelog: str, directory: Path) -> None:
        super().__init__(
            transport, changelog, directory, changelog, sends=True, on_recovered=self._recovered, works_on=topic
        )
        self._leaving: set[int] = set()
        """Partitions that may have items to drop."""
        self._dropped: dict[int, bytes] = {}
        """By partition the last item dropped: the next look begins behind it, not before all that is gone."""

    def memory(self, partition: int) -> DeliveredItems:
        """Return what a partition remembers, the slice under way included."""
        if partition not in self.all:
            raise FatalError(
                f"partition {partition} of {self.fence} is not on this worker, though that of the ingest topic is: "
                "the group has workers of another version",
                hint="stop all workers, then start them in the new version",
            )
        return DeliveredItems(self.all[partition], partial(self._leaving.add, partition))

    def _recovered(self, number: int, partition: TablePartition) -> None:
        self._leaving.add(number)

    def due(self) -> bool:
        """Say whether there are items to drop."""
        return bool(self._leaving) or super().due()

    def finish(self, work: Slice) -> None:
        """Drop some items of snapshots that have ended, and write the changelog."""
        for number in list(self._leaving):
            if number not in self.all or not self._drop_some(number):
                self._leaving.discard(number)
                self._dropped.pop(number, None)
        super().finish(work)

    def aborted(self, work: Slice) -> None:
        """Forget what the slice did; what it dropped is there again."""
        self._leaving |= self._dropped.keys()
        self._dropped.clear()
        super().aborted(work)

    def _drop_some(self, number: int) -> bool:
        """Return whether there is more to drop."""
        part, memory = self.all[number], self.memory(number)
        for table, snapshot in memory.leaving:
            prefix = entries_of(table, snapshot)
            part.write(dict.fromkeys(part.written(prefix)))  # in the slice that ends it, and in no store yet
            last = self._dropped.get(number, b"")
            found = list(islice(part.keys(prefix, last if last.startswith(prefix) else prefix), DROPPED))
            if found:
                part.write(dict.fromkeys(found))
                self._dropped[number] = found[-1]
            else:
                memory.forget(table, snapshot)
            return True
        return False
