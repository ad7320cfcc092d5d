"""Slices that last too long: who takes the time, and which record is at fault.

A slice that lasts longer than its transaction may is aborted and processed again in smaller parts. A record that takes
too long by itself, twice, is left out where its agent writes it away; else the worker stops and names it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, cast

from faust.types import TP, AgentT, ConsumerMessage

from pipeline.errors import HeadwaterError
from pipeline.transport.batch import Batch
from pipeline.transport.fatal import stop_process
from pipeline.transport.pace import Pace
from pipeline.transport.participant import Slice, is_virtual
from pipeline.transport.transaction import Transaction

log = logging.getLogger(__name__)

UNACKED_DEADLINE_S = 60.0
"""Seconds without an ack, with something delivered, after which the worker stops and names what it waits for."""
SUSPECT_CUT = 64
"""The part of a batch that took too long which is tried next of its partition, at most: each try takes as long again."""
TWICE = 2
"""Times in a row that a record must take too long by itself before it is taken for the cause: the machine may have slept."""
GLANCE_S = 1.0
"""Seconds between two looks that count at most: for what is longer the process itself was stopped."""


class TooSlowError(HeadwaterError):
    """A record that takes longer by itself than a transaction may last."""


class Suspects(NamedTuple):
    """A batch that took too long: there may be one record in it that does."""

    until: int
    """The offset of its last record."""
    most: int
    """Records of the partition in a batch at most, until that one is committed."""


class Slow:
    """Watches over the time that the agents take. On the event loop."""

    def __init__(
        self,
        transaction: Transaction,
        pace: Pace,
        *,
        agents: Callable[[], Iterable[AgentT[Any]]],
        doing: Callable[[], str],
        leave_out: Callable[[Batch, Exception], bool],
    ) -> None:
        """`doing` says in words what the agents' thread works on; `leave_out` has a record left out, False: it cannot be."""
        self._transaction, self._pace = transaction, pace
        self._agents, self._doing, self._leave_out = agents, doing, leave_out
        self.is_late = False
        """Whether the slice under way has lasted for too long."""
        self._late_at = ""
        """What was worked on when it had."""
        self._late_alone: dict[TP, tuple[int, int]] = {}
        """The record of a partition that took too long by itself, by its offset, and how often."""
        self._suspects: dict[TP, Suspects] = {}
        """Where a batch took too long: other partitions continue as usual, so that the next slices say nothing of it."""
        self._at_work: tuple[ConsumerMessage | None, float] = None, 0.0
        """What the agents work on, and the seconds since they began it."""
        self._longest: tuple[ConsumerMessage | None, float] = None, 0.0
        """What they have worked on the longest in this slice."""
        self.busy = 0.0
        """Seconds in which the agents had work in this slice."""
        self._waited = self._looked_at = 0.0
        """Seconds since the last ack; when that was looked at."""

    def begin(self) -> None:
        """Begin a slice."""
        self.is_late, self._late_at, self.busy, self._waited = False, "", 0.0, 0.0
        self._at_work = self._longest = None, 0.0
        self._looked_at = time.monotonic()

    def acked(self) -> None:
        """Take note that an agent has acked."""
        self._waited = 0.0

    def most(self, tp: TP) -> int:
        """Return how many records of a partition may be in a batch."""
        return self._suspects[tp].most if tp in self._suspects else sys.maxsize

    def look(self, unacked: Sequence[ConsumerMessage], *, working: bool) -> None:
        """Count the time since the last look, if the agents had work in it; give a slice up that lasts for too long."""
        now = time.monotonic()
        passed, self._looked_at = min(now - self._looked_at, GLANCE_S), now
        if not working:
            return
        self.busy += passed
        self._waited += passed
        current = self._current(unacked)
        before, seconds = self._at_work
        self._at_work = current, passed + (seconds if current is before else 0.0)
        if self._at_work[1] > self._longest[1]:
            self._longest = self._at_work
        patience = self._transaction.patience
        if self.busy > patience and not self.is_late:
            self.is_late = True
            self._late_at = self._doing()
            waiting = f"; {self._named(current)}" if current is not None else ""
            self._transaction.spoil(f"it took more than {patience:.0f} s{waiting}")
            log.warning("A slice takes more than %.0f s and will be processed again%s", patience, waiting)
        if self._waited > UNACKED_DEADLINE_S and unacked:
            self._stop(unacked[0])

    def _stop(self, message: ConsumerMessage) -> NoReturn:
        stop_process(
            f"{self._named(message)} is not done after {self._waited:.0f} s",
            hint="is its step stuck? Every message must be acked; docs/how-to/trouble.md",
        )

    def _current(self, unacked: Sequence[ConsumerMessage]) -> ConsumerMessage | None:
        """Return what the agents work on: what a step has in hand, else the first message that is not acked."""
        if not unacked:
            return None
        batch = cast("Any", self._transaction.in_hand)
        return next((message for message in unacked if batch is not None and message.value is batch), unacked[0])

    def took_too_long(self, flown: Sequence[ConsumerMessage], records: int) -> None:
        """Make the next slice smaller; a record that is too slow by itself, twice, is dead-lettered or stops the worker.

        Which one it is, is looked for in the batch that took the longest. Raises TooSlowError.
        """
        self._pace.late(records, self.busy)
        message, seconds = (flown[0], self.busy) if len(flown) == 1 else self._longest
        if message is None or is_virtual(message.topic):
            return
        batch, patience = cast("Any", message.value), self._transaction.patience
        if isinstance(batch, Batch) and len(batch) > 1:
            self._suspects[message.tp] = Suspects(message.offset, max(1, len(batch) // SUSPECT_CUT))
            return
        if seconds < patience:
            return
        offset, times = self._late_alone.get(message.tp, (message.offset, 0))
        times = times + 1 if offset == message.offset else 1
        self._late_alone[message.tp] = message.offset, times
        if times < TWICE:
            return
        error = TooSlowError(
            f"{self._named(message)} took {seconds:.1f} s by itself, {times} times; a slice may last {patience:.0f} s",
            hint='raise "transaction.timeout.ms" of [kafka.properties], or make the step faster',
        )
        if not (isinstance(batch, Batch) and self._leave_out(batch, error)):
            raise error

    def _named(self, message: ConsumerMessage) -> str:
        """Return the words for a message that an agent has in hand: which agent, and where the message is."""
        agents = [
            agent.name.rpartition(".")[2].removeprefix("]") or agent.name
            for agent in self._agents()
            if message.topic in agent.get_topic_names()
        ]
        who = f"the agent {' or '.join(agents)}" if agents else "nobody knows which agent"
        words = self._doing() or self._late_at
        doing = f" ({words})" if words else ""
        batch = cast("Any", message.value)
        where = f"{batch.first_offset} to {batch.last_offset}" if isinstance(batch, Batch) else f"{message.offset}"
        return f"{who}{doing}: {message.topic}[{message.partition}] offset {where}"

    def committed(self, work: Slice) -> None:
        """Clear of suspicion what is committed."""
        for tp, offset in work.offsets.items():
            if tp in self._suspects and offset > self._suspects[tp].until:
                del self._suspects[tp]
            if tp in self._late_alone and offset > self._late_alone[tp][0]:
                del self._late_alone[tp]

    def drop(self, tp: TP) -> None:
        """Forget a partition."""
        self._suspects.pop(tp, None)
        self._late_alone.pop(tp, None)
