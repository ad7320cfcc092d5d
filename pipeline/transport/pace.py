"""How much a slice may hold, so that it ends well inside the transaction's time-out, whatever the agents' steps do. Pure.

Nothing can interrupt a step, so a slice that lasted too long is only known afterwards: the broker has given its transaction
up by then. What is known before is how long the last ones took. A slice begins small, grows while it is quick, and is cut
down, to one record in the end, when it was not.
"""

from __future__ import annotations

FIRST = 200
"""Records of the first slice, when nothing is known yet."""
GROWTH = 16
"""Times that a slice may hold more than the largest of the last ones."""
CUT = 4
"""The part of its records that is tried next, at most, when a slice took too long."""


class Pace:
    """The bound of the next slice, in records."""

    def __init__(self, most: int, budget: float) -> None:
        """`most` records a slice, whatever the pace; `budget`: the seconds of work that a slice is to hold."""
        self._most, self._budget = most, budget
        self.limit = min(FIRST, most)

    def done(self, records: int, seconds: float) -> None:
        """Take note of a slice that ended in time: so many records, and the seconds in which the agents had work."""
        if records > 0:
            by_pace = int(self._budget * records / seconds) if seconds > 0 else self._most
            self.limit = max(1, min(self._most, by_pace, GROWTH * max(records, self.limit)))

    def late(self, records: int, seconds: float) -> None:
        """Take note of a slice that took too long."""
        by_pace = int(self._budget * records / seconds) if seconds > 0 else 1
        self.limit = max(1, min(records // CUT, by_pace, self.limit))

    def cap(self, records: int) -> None:
        """Have the next slice hold no more than so many."""
        self.limit = max(1, min(self.limit, records))
