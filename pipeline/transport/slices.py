"""The slices of a worker: deliver, wait until the agents have acked everything, commit ONE transaction; and again.

A slice delivers for `slice_seconds`, with a backlog for up to three times as long. Between slices nothing is in flight, so a
rebalance is: end the slice, then tell Faust. An aborted slice goes back to the front of the backlog, in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import NoReturn, Protocol

from faust.types import TP, AppT, ConsumerMessage

from pipeline.errors import HeadwaterError
from pipeline.transport.alarm import wait_at_most
from pipeline.transport.backlog import Backlog
from pipeline.transport.base import BaseTransport
from pipeline.transport.batch import Batch, BatchSchema
from pipeline.transport.deliveries import Deliveries, records_in
from pipeline.transport.events import EVENTS_AHEAD, RUN, SingleMessage, hand_over
from pipeline.transport.fatal import stop_process
from pipeline.transport.pace import Pace
from pipeline.transport.participant import Slice, is_virtual
from pipeline.transport.poison import Poison
from pipeline.transport.reader import Reader
from pipeline.transport.slow import Slow
from pipeline.transport.transaction import CAREFUL, next_offsets

log = logging.getLogger(__name__)

AHEAD = 3
"""Batches delivered and not acked at most: Faust's queues do not push back, and a slice would take the whole backlog."""
FIRST_EVENTS = 3
"""Single events that are handed over at once while nothing is known of their agent: each may take a second."""
BACKLOG_INTERVALS = 3
"""Times `slice_seconds` that a slice lasts at most while more waits: a commit takes 20 to 40 ms, nothing else is done then."""
SLICE_RECORDS, SLICE_BYTES = 30_000, 32 << 20
"""Records, and bytes of their values, in a slice at most."""
ABORTED_IN_A_ROW = 100
"""Slices aborted in a row after which something is permanently wrong: the worker stops and says what."""
REFUSED_PAUSE_S = 0.2
"""Seconds to wait after a slice that the broker refused: a worker that was evicted hears of it a moment later."""
END_DEADLINE_S = 60.0
"""Seconds after which the end of a slice is given up: a transaction is aborted by its coordinator long before, and librdkafka
has been seen to wait forever when the coordinator of the group had died."""
STOP_DEADLINE_S = 8.0
"""Seconds that a stopping worker waits for what the agents have in hand."""


class SlicesHost(Protocol):
    """What the consumer does for its slices; the rest of it is Faust's."""

    @property
    def reader(self) -> Reader:
        """The thread that polls."""

    @property
    def app(self) -> AppT:
        """Faust's app."""

    @property
    def is_flowing(self) -> bool:
        """Whether Faust lets messages through at all."""

    def may_run(self, tp: TP) -> bool:
        """Say whether a partition's records may be delivered to agents."""

    def may_recover(self, tp: TP) -> bool:
        """Say whether a partition is a changelog that Faust reads."""

    def schema_of(self, topic: str) -> BatchSchema | None:
        """Return the schema of a batch-native topic, None for one of single events."""

    def assignment(self) -> set[TP]:
        """Return the partitions of this worker."""

    def deliver(self, message: ConsumerMessage) -> Awaitable[None]:
        """Hand a message to Faust's channels."""

    async def wait_for_ack(self, message: ConsumerMessage) -> None:
        """Wait until this message is acked, for a moment."""

    def settled(self, tps: Iterable[TP], offsets: Mapping[TP, int] | None) -> None:
        """Take note that a slice is over; `offsets`: what it has committed, None when it was aborted."""


class Slices:
    """The loop of one worker's slices, on the event loop."""

    def __init__(self, host: SlicesHost, transport: BaseTransport, backlog: Backlog) -> None:
        self._host, self._transport, self._backlog = host, transport, backlog
        self._transaction = transport.transaction
        self.poison = Poison()
        self.pace = Pace(SLICE_RECORDS, self._transaction.patience * 0.3)
        self._run_pace = Pace(RUN, transport.slice_seconds)
        """Single events that are handed over at once: as many as are done in the time of a slice."""
        self._run_pace.cap(FIRST_EVENTS)
        self.slow = Slow(
            self._transaction,
            self.pace,
            agents=lambda: host.app.agents.values(),  # noqa: PLW0108 - the app has them later
            doing=lambda: transport.doing,
            leave_out=self._leave_out,
        )
        self.deliveries = Deliveries(backlog, self.poison, self.slow, host.schema_of)
        self._transaction.blame = self._leave_out
        self.between, self.news = asyncio.Lock(), asyncio.Event()
        """Taken while a slice runs; set when there may be something to do."""
        self.is_rebalancing = False
        """Set while the reader waits for the end of the slice."""
        self._flown: list[ConsumerMessage] = []
        self._acked_until = 0
        self._lost_before = self._refused = 0
        self._has_stood = False
        """Whether the slice under way was given up because a partition must be kept back."""
        self._is_stopping = False
        self._stop_by = self._next_commit = 0.0
        self._moved = time.monotonic()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.create_task(self._run())

    @property
    def has_started(self) -> bool:
        """Whether there is a loop to stop."""
        return self._loop is not None

    async def stop(self) -> None:
        """End the last slice: what the agents have in hand is awaited, what waits in queues is not."""
        assert self._loop is not None  # noqa: S101 - see `has_started`
        self._stop_by = time.monotonic() + STOP_DEADLINE_S
        self._is_stopping = True
        self.news.set()
        await asyncio.wait([self._loop], timeout=STOP_DEADLINE_S + 1)  # it ends its slice; nobody else may
        if not self._loop.done():
            stop_process("the broker does not answer: the slice under way was neither committed nor aborted")
        if self._transaction.open:
            await self._abort("the worker is stopping")

    async def _abort(self, reason: str) -> None:
        transaction = self._transaction
        await transaction.run(transaction.abort, Slice(transaction.producer), reason)

    def drop(self, tp: TP) -> None:
        """Forget a partition that is not this worker's any more."""
        self._backlog.drop(tp)
        self.poison.drop(tp)
        self.slow.drop(tp)

    def give_up_slice(self, reason: str) -> None:
        """Give the slice under way up because partitions must be kept back: no record of them is at fault."""
        self._transaction.spoil(reason)
        self._has_stood = True

    def seconds_without_commit(self) -> float:
        """Return the seconds since which there is work and nothing of it was committed."""
        return time.monotonic() - self._moved

    def blame(self, batch: Batch, error: Exception) -> bool:
        """Redo the slice without the record at which an agent has raised; False: it must be the agent, stop.

        The agent acks the batch as usual. It is delivered again record by record, then the guilty one alone, `error` set.
        """
        log.error("An agent failed at %r; its records are processed again one by one:", batch, exc_info=error)
        self._transaction.spoil(f"an agent failed at {batch!r}")
        return self.poison.blame(batch, error)

    def _leave_out(self, batch: Batch, error: Exception) -> bool:
        """Have a record left out, where its agent writes it away; False: it does not."""
        return self._transport.leaves_out(error) and self.poison.blame(batch, error)

    async def give_up(self, who: str, error: BaseException) -> NoReturn:
        """End the worker: the slice under way is aborted."""
        reason = error.message if isinstance(error, HeadwaterError) else f"{who} failed: {error!r}"
        if not isinstance(error, HeadwaterError):
            log.error("Unexpected, in %s:", who, exc_info=error)
        self._transaction.spoil(reason)
        if self._transaction.open:  # not when it failed after the commit
            await self._abort(reason)
        stop_process(
            reason, hint=getattr(error, "hint", "") or "start the worker again: it asks the broker what was committed"
        )

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._is_stopping:
                if (changelog := self._backlog.next(self._host.may_recover)) is not None:
                    for message in self.deliveries.take_events(changelog, 1):
                        await self._host.deliver(message)
                elif not self.is_rebalancing and self._is_work():
                    async with self.between:
                        await self._slice()
                else:
                    self._moved = time.monotonic()
                    self.news.clear()
                    await wait_at_most(self.news, 0.01 if self._host.app.rebalancing else 0.1)
        except Exception as error:  # noqa: BLE001 - without its slices a worker would silently be idle
            await self.give_up("the slices", error)

    def _is_work(self) -> bool:
        if self._host.app.rebalancing or not self._host.is_flowing:
            return False
        if self._backlog.any(self._host.may_run) or self._transaction.open:  # open: sends from timers, web pages
            return True
        return any(participant.due() for participant in self._transport.participants)

    async def _slice(self) -> None:
        # Pinned here, before the first record is delivered, and never read again: a commit under it proves that
        # nobody else had these partitions meanwhile.
        membership = self._host.reader.membership
        if membership is None:
            await asyncio.sleep(0.05)
            return
        self.slow.begin()
        await self._deliver()
        records, flown = sum(map(records_in, self._flown)), tuple(self._flown)
        if await self._end(membership):
            self._refused = 0
            self.pace.done(records, self.slow.busy)
            self._run_pace.done(sum(isinstance(message, SingleMessage) for message in flown), self.slow.busy)
        elif self._has_stood:
            self._has_stood = False
        elif not self._is_stopping:
            if self.slow.is_late:
                self.slow.took_too_long(flown, records)
            self._refused += 1
            if self._refused >= ABORTED_IN_A_ROW:
                stop_process(f"{self._refused} slices in a row were aborted: {self._transaction.last_abort}")
            if self._transaction.careful:
                self.pace.cap(CAREFUL)
            await asyncio.sleep(REFUSED_PAUSE_S)

    async def _deliver(self) -> None:
        end = time.monotonic() + BACKLOG_INTERVALS * self._transport.slice_seconds
        room, bytes_left = self.pace.limit, SLICE_BYTES
        while not self.is_rebalancing and not self._is_stopping and room > 0 and bytes_left > 0:
            now, waits = time.monotonic(), self._unfinished()
            # What waits in the buffer of `stream.take()` has done nothing yet: there, more is better than a commit.
            if now >= end and not (waits and self._is_idle()):
                break
            if waits and self._is_enough():
                await self._wait_for_ack()
            elif (tp := self._backlog.next(self._host.may_run)) is not None:
                self._look(working=waits)
                for message in await self._hand_over(tp, room):
                    self._flown.append(message)
                    room -= records_in(message)
                    bytes_left -= message.serialized_value_size
            elif waits:
                await self._wait_for_ack()
            elif now < self._next_commit:
                self._look(working=False)
                self.news.clear()
                await wait_at_most(self.news, min(end, self._next_commit) - now)
                self._look(working=False)
            else:
                break
        while self._unfinished() and (not self._is_stopping or self._is_in_hand()):
            await self._wait_for_ack()
        self._look(working=bool(self._flown))

    async def _hand_over(self, tp: TP, room: int) -> Sequence[ConsumerMessage]:
        """Hand the next messages of a partition to its agents, of so many records at most; return them."""
        if self.deliveries.is_single(tp):
            messages = self.deliveries.take_events(tp, min(room, self._run_pace.limit))
            await hand_over(self._host.app, messages)
            await asyncio.sleep(0)  # let the agents begin
            return messages
        message = self.deliveries.take(tp, room)
        await self._host.deliver(message)
        return (message,)

    def _is_enough(self) -> bool:
        """Say whether as much is delivered and not acked as may be."""
        unacked = len(self._flown) - self._acked_until
        if not isinstance(self._flown[-1], SingleMessage):
            return unacked >= AHEAD
        if self._is_idle():
            return unacked >= self._host.app.conf.stream_buffer_maxsize
        return unacked >= min(EVENTS_AHEAD, 2 * self._run_pace.limit)

    def _is_idle(self) -> bool:
        """Say whether no agent is at work on what is not acked: some of it waits for `take`, and nothing was written."""
        if self._transaction.open:
            return False
        unacked = [message for message in self._flown[self._acked_until :] if not message.acked]
        return any(getattr(message, "is_buffered", False) for message in unacked) and not any(
            getattr(message, "started", True) for message in unacked
        )

    def _let_go_of_the_rest(self) -> None:
        """Have agents skip what they have not begun: the slice is processed again anyway."""
        for message in self._flown[self._acked_until :]:
            if isinstance(message, SingleMessage) and not (message.started or message.is_buffered):
                message.acked = True

    def _look(self, *, working: bool) -> None:
        self._unfinished()
        self.slow.look(self._flown[self._acked_until :], working=working)

    def _is_in_hand(self) -> bool:
        """Say whether a stopping worker must wait for an agent: one that has taken a message and not acked it.

        Faust has cleared the queues by then: what was in them is processed again by the next owner.
        """
        return time.monotonic() < self._stop_by and any(
            not message.acked and getattr(message, "started", not isinstance(message.value, Batch))
            for message in self._flown[self._acked_until :]
        )

    def _unfinished(self) -> bool:
        while self._acked_until < len(self._flown) and self._flown[self._acked_until].acked:
            self._acked_until += 1
            self.slow.acked()
        return self._acked_until < len(self._flown)

    async def _wait_for_ack(self) -> None:
        """Wait until there is room for another run of single events, or all is done; for a moment at most."""
        await self._host.wait_for_ack(self._flown[max(self._acked_until, len(self._flown) - RUN)])
        self._look(working=not self._is_idle())
        if self.slow.is_late:
            self._let_go_of_the_rest()

    async def _end(self, membership: bytes) -> bool:
        """End the slice: commit, or put everything back. True if it was committed."""
        transaction, reader = self._transaction, self._host.reader
        offsets = {tp: offset for tp, offset in next_offsets(self._flown).items() if not is_virtual(tp.topic)}
        work = Slice(transaction.producer, tuple(self._flown), offsets)
        await self._host.app.producer.flush()
        if self._unfinished():
            transaction.spoil("the worker is stopping")
        if reader.lost != self._lost_before:
            self._lost_before = reader.lost
            transaction.spoil("the partitions were lost")
        transaction.idle.clear()
        try:
            committed = await asyncio.wait_for(transaction.run(transaction.commit, work, membership), END_DEADLINE_S)
        except asyncio.TimeoutError:
            stop_process(
                f"Kafka has not answered for {END_DEADLINE_S:.0f} s: the slice under way was not committed, or unknown"
            )
        finally:
            transaction.idle.set()
        # The first records after a pause commit at once; under load there is one transaction an interval.
        self._next_commit = time.monotonic() + self._transport.slice_seconds
        if committed:
            self._moved = time.monotonic()
            self.poison.committed(work)
            self.slow.committed(work)
        else:
            self.deliveries.give_back(self._flown, self._host.assignment())
        self._host.settled({message.tp for message in self._flown}, work.offsets if committed else None)
        self._flown.clear()
        self._acked_until = 0
        self._backlog.measure()
        return committed
