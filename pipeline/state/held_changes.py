"""Changes that wait: behind a rejected one of their item, where the flow keeps the order, or for a reference.

By partition of raw, on disk, exactly once: what is parked, sent or given up enters the transaction of the slice. An item
that is blocked has a head entry, which says why; the changes that wait are in the order of their offsets on raw.

How long a change has waited is counted by the process's own clock, which nobody can set, and not from its time stamp. A worker
that takes a partition over lets what waits there wait for its whole time again: it may be longer, never shorter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.errors import FatalError
from pipeline.state.table_partitions import Partitions, TablePartition
from pipeline.transport import Slice, Transport

HELD_CHANGES_EVERY_S = 0.1
"""Seconds between two looks at what waits for references."""
LOOKED_AT = 2_000
"""Items that are looked at in one of them at most."""


class Head(msgspec.Struct, array_like=True, frozen=True):
    """Why the changes of an item wait."""

    flow: str
    item: bytes
    """The item key."""
    offset: int
    """Where the first of them is on raw."""
    reference: tuple[str, bytes] | None = None
    """The table and the key whose item is awaited; None: the first was rejected."""
    wait: float = 0.0
    """The seconds that it waits at most. In a state of an earlier version: the end, in seconds since the epoch."""


class HeldChange(msgspec.Struct, array_like=True, frozen=True):
    """A change that waits."""

    offset: int
    at: float
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes | None]] = []
    """Those that it has on raw; a value may be None, where somebody else has written there."""


class FlowItem(NamedTuple):
    """A flow and an item whose changes wait."""

    flow: str
    item: bytes


encode = msgspec.msgpack.encode
_decode_head = msgspec.msgpack.Decoder(Head).decode
_decode_waiting = msgspec.msgpack.Decoder(HeldChange).decode
HEADS = b"h/"


class Times:
    """Since when changes wait, by the clock that waits are counted with. In memory."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun: dict[tuple[FlowItem, int], float] = {}

    def since(self, place: FlowItem, offset: int) -> float:
        """Return since when the change of an item at an offset of raw waits: now, when it was not known."""
        return self._begun.setdefault((place, offset), self._clock())

    def end(self, place: FlowItem, offset: int) -> float:
        """Return the same, and forget it."""
        return self._begun.pop((place, offset), self._clock())


class HeldChanges:
    """What is parked of one partition of raw, within a slice."""

    def __init__(
        self,
        part: TablePartition,
        on_block: Callable[[FlowItem, Head], None],
        times: Times | None = None,
    ) -> None:
        """Take `times`, which say since when changes wait here."""
        self._part, self._on_block, self._times = part, on_block, times or Times(time.monotonic)

    def head(self, place: FlowItem) -> Head | None:
        """Return why the changes of an item wait; None: they do not."""
        found = self._part.get(_head_of(place))
        return None if found is None else _decode_head(found)

    def block(self, place: FlowItem, head: Head) -> None:
        """From here on the changes of an item wait."""
        self._part.write({_head_of(place): encode(head)})
        self._on_block(place, head)

    def hold(self, place: FlowItem, waiting: HeldChange) -> None:
        """Keep a change until its item is free."""
        self._times.since(place, waiting.offset)
        self._part.write({_queue_of(place) + waiting.offset.to_bytes(8, "big"): encode(waiting)})

    def free(self, place: FlowItem) -> list[HeldChange]:
        """Return the changes of an item that wait, in order, with the times since which they do; they are no longer parked."""
        entries = self._entries(place)
        found = [_decode_waiting(value) for value in self._part.get_many(entries) if value is not None]
        self._part.write(dict.fromkeys([*entries, _head_of(place)]))
        return [msgspec.structs.replace(one, at=self._times.end(place, one.offset)) for one in found]

    def behind(self, flow: str, offset: int) -> FlowItem | None:
        """Return the item of a flow whose changes wait behind the one at an offset; None: no item's do."""
        found = (head for head in self.heads() if (head.flow, head.offset) == (flow, offset))
        return next((FlowItem(head.flow, head.item) for head in found), None)

    def offsets(self, place: FlowItem) -> list[int]:
        """Return the offsets on raw of the changes of an item that wait, in order."""
        return [int.from_bytes(entry[-8:], "big") for entry in self._entries(place)]

    def count(self, place: FlowItem) -> int:
        """Return how many changes of an item wait."""
        return len(self._entries(place))

    def _entries(self, place: FlowItem) -> list[bytes]:
        prefix = _queue_of(place)
        return sorted({*self._part.keys(prefix, prefix), *self._part.written(prefix)})

    def heads(self) -> Iterator[Head]:
        """Yield all that is blocked and committed."""
        for key in self._part.keys(HEADS, HEADS):
            if (found := self._part.get(key)) is not None:
                yield _decode_head(found)


EPOCH_S = 1e9
"""Seconds above which a wait is an end: in a state of an earlier version."""


def _wait_of(head: Head) -> float:
    """Return the seconds that what was recovered waits for its reference."""
    return head.wait if head.wait < EPOCH_S else max(0.0, head.wait - time.time())


def _digest(place: FlowItem) -> bytes:
    return blake2b(place.flow.encode() + b"\0" + place.item, digest_size=16).digest()


def _head_of(place: FlowItem) -> bytes:
    return HEADS + _digest(place)


def _queue_of(place: FlowItem) -> bytes:
    return b"q/" + _digest(place) + b"/"


class HeldState(Partitions):
    """Follows the slices. `held` is for the transform agent; `release` is called for each item whose wait is over."""

    def __init__(
        self,
        transport: Transport,
        topic: str,
        changelog: str,
        directory: Path,
        *,
        is_there: Callable[[int, str, bytes], bool],
        release: Callable[[int, FlowItem], None],
        is_ready: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_there` says whether a reference table has an item, for a partition; `release` sends what waits, in the slice.

        Before `is_ready` nothing is sent: a slice of another agent may end while the flows of this worker are not there yet.
        """
        super().__init__(
            transport, changelog, directory, changelog, sends=True, on_recovered=self._recovered, works_on=topic
        )
        self._is_there, self._release, self._clock = is_there, release, clock
        self._is_ready = is_ready
        self._awaiting: dict[tuple[int, FlowItem], tuple[Head, float]] = {}
        """What waits for references, and until when. May hold what no longer waits: a look finds out."""
        self._times: dict[int, Times] = {}
        """By partition, since when changes wait; of those that were recovered, since then."""
        self._next_look = 0.0

    def part(self, partition: int) -> TablePartition:
        """Return a partition; raise FatalError when it is not here."""
        if partition not in self.all:
            raise FatalError(
                f"partition {partition} of {self.fence} is not on this worker, though that of raw is: "
                "the group has workers of another version",
                hint="stop all workers, then start them in the new version",
            )
        return self.all[partition]

    def held(self, partition: int) -> HeldChanges:
        """Return what is parked of a partition, the slice under way included."""

        def on_block(place: FlowItem, head: Head) -> None:
            if head.reference is not None:
                self._awaiting[partition, place] = head, self._clock() + head.wait

        return HeldChanges(self.part(partition), on_block, self._times.setdefault(partition, Times(self._clock)))

    def _recovered(self, number: int, partition: TablePartition) -> None:
        self._times[number] = Times(self._clock)
        for head in self.held(number).heads():
            if head.reference is not None:
                place = FlowItem(head.flow, head.item)
                self._awaiting[number, place] = head, self._clock() + _wait_of(head)
                for offset in self.held(number).offsets(place):
                    self._times[number].since(place, offset)

    def due(self) -> bool:
        """Say whether it is time to look whether a wait is over."""
        may_look = bool(self._awaiting) and self._clock() >= self._next_look and self._is_ready()
        return (may_look and bool(self._over())) or super().due()

    def _over(self) -> list[tuple[int, FlowItem]]:
        now = self._clock()
        self._next_look = now + HELD_CHANGES_EVERY_S
        found = []
        for (number, place), (head, until) in list(self._awaiting.items())[:LOOKED_AT]:
            # To the end of the queue: the next look begins with others.
            self._awaiting[number, place] = self._awaiting.pop((number, place))
            if number not in self.all:
                del self._awaiting[number, place]  # its new owner looks
            elif until <= now or (head.reference is not None and self._is_there(number, *head.reference)):
                found.append((number, place))
        return found

    def finish(self, work: Slice) -> None:
        """Send what need not wait any more, and write the changelog."""
        if self._awaiting and self._is_ready():
            for number, place in self._over():
                head = self.held(number).head(place)
                if head is None or head.reference is None:
                    self._awaiting.pop((number, place), None)
                else:
                    self._release(number, place)
        super().finish(work)
