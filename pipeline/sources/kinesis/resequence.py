"""Put changes of an item in the order in which they happened, when they come within a window of time. Pure.

DynamoDB may deliver a change into Kinesis after a newer one of its item. A window holds every change back until the stream
is `seconds` further, and then gives it behind the older ones of its item that have come by then. See docs/decisions/0015.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Self

from models.change import MalformedChangeError, decode
from pipeline.limits import MESSAGE_MAX
from pipeline.sources.base import Cut, Unreadable
from pipeline.sources.kinesis.records import Answer, Codec, changes

MOST_BYTES = 16 << 20
"""Of the changes of a shard that are held back; what is above is given early."""
Item = tuple[str, bytes]
"""Table and item key."""


@dataclass(slots=True)
class HeldRecord:
    """A change, or what cannot be read, that waits for its turn."""

    part: dict[str, bytes] | Unreadable
    sequence: str
    arrived: float
    """When Kinesis took it, in seconds since the epoch."""
    item: Item | None
    """None: it has no order but its place."""
    turn: tuple[int, int]
    """When the change happened, in microseconds, and its number in the stream: the order of an item's changes."""
    given: bool = False

    @property
    def size(self) -> int:
        """Bytes of its value."""
        return len(self.part.value if isinstance(self.part, Unreadable) else self.part["value"])


class Window:
    """What is held back of one shard, from one position on.

    Guarantees: every change is given once; `last` of a Cut never passes a record of which something is held; a change that
    comes at most `seconds` after the first newer one of its item (by the times of arrival in the stream) is given before it,
    unless more than `MOST_BYTES` would have to be held. Changes of the same time stay in the order of the stream.
    """

    def __init__(self, seconds: float, most_bytes: int = MOST_BYTES) -> None:
        self._seconds, self._most = seconds, most_bytes
        self._held: deque[HeldRecord] = deque()
        """In the order of the shard; what was given early is dropped when it comes to the front."""
        self._items: dict[Item, list[tuple[tuple[int, int], HeldRecord]]] = defaultdict(list)
        """Of each item what waits, as a heap: the one that happened first is on top."""
        self._size = self._number = 0
        self._read_to = self._newest = self._heard = 0.0
        """Up to which time of arrival the shard is read; the newest arrival, and when (monotonic) it was heard of."""

    def take(self, answer: Answer, how: Codec, most: int = MESSAGE_MAX) -> Cut:
        """Take an answer in; return what is now due, at the shard's end everything."""
        for put in answer.puts:
            for part in changes(put, how, most):
                self._hold(part, put.sequence, put.arrived)
        self._move_on(answer)
        cut = Cut([], [], None, answer.next_iterator, wait=answer.wait)
        last = begun = None
        while self._held and (answer.next_iterator is None or self._is_due(self._held[0], begun)):
            begun = self._held[0].sequence
            self._give(self._held[0], cut)
            while self._held and self._held[0].given:
                passed = self._held.popleft().sequence
                if not self._held or self._held[0].sequence != passed:
                    last = passed
        first = answer.puts[0].sequence if answer.puts else None
        return cut._replace(first=first, last=last, behind=answer.behind or bool(self._held))

    def _hold(self, part: dict[str, bytes] | Unreadable, sequence: str, arrived: float) -> None:
        item, at = None, 0
        if not isinstance(part, Unreadable):
            try:
                change = decode(part["value"])
            except (MalformedChangeError, RecursionError):
                pass  # transform will reject it
            else:
                item, at = (change.table, part["key"]), change.ts_us
        self._number += 1
        held = HeldRecord(part, sequence, arrived, item, (at, self._number))
        self._held.append(held)
        self._size += held.size
        if item is not None:
            heappush(self._items[item], (held.turn, held))

    def _move_on(self, answer: Answer) -> None:
        """Find out up to which time of arrival everything is read.

        Of an answer that is not behind: what had come until it was asked for. How much later than the newest record
        that was, our own clock says; the two clocks are never compared.
        """
        if self._heard and not answer.behind:
            self._read_to = max(self._read_to, self._newest + answer.asked - self._heard)
        newest = max((put.arrived for put in answer.puts), default=0.0)
        if newest > self._newest:
            self._newest, self._heard = newest, answer.heard
        self._read_to = max(self._read_to, self._newest)

    def _is_due(self, held: HeldRecord, begun: str | None) -> bool:
        """Say so also for the rest of a record of which a part was due, so that what is given goes with the position."""
        due = held.arrived + self._seconds < self._read_to or self._size > self._most
        return due or held.sequence == begun

    def _give(self, due: HeldRecord, cut: Cut) -> None:
        """Give a change behind the older ones of its item. It is the first of the stream: none of its time is before it."""
        if due.item is None:
            self._add(due, cut)
            return
        waiting = self._items[due.item]
        while waiting and waiting[0][0] <= due.turn:
            self._add(heappop(waiting)[1], cut)
        if not waiting:
            del self._items[due.item]

    def _add(self, held: HeldRecord, cut: Cut) -> None:
        held.given = True
        self._size -= held.size
        if isinstance(held.part, Unreadable):
            cut.unreadable.append(held.part)
        else:
            cut.records.append(held.part)


class Windowed(str):
    """The text of an iterator, and what is held back since it was asked for: they begin and end together."""

    window: Window
    text: str
    """As it was given, with what else it may carry."""

    @classmethod
    def of(cls, text: str, window: Window) -> Self:
        """Return the text with a window."""
        found = cls(text)
        found.window, found.text = window, text
        return found
