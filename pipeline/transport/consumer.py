"""Faust's consumer on the reader thread: membership, slices, rebalances.

Work goes in slices: deliver for `slice_seconds`, with a backlog for up to three times as long, wait until the agents have
acked everything, commit ONE transaction. Between slices nothing is in flight, so a rebalance is: end the slice, then tell
Faust. An aborted slice goes back to the front of the backlog, in order; revoked partitions are dropped.

Faust's Fetcher, its commit timer and its seeks stay idle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn, cast

from confluent_kafka import Message, TopicPartition
from faust.assignor.client_assignment import ClientAssignment
from faust.transport import consumer as faust_consumer
from faust.types import TP, ConsumerMessage

from pipeline.errors import HeadwaterError
from pipeline.transport.alarm import wait_at_most
from pipeline.transport.backlog import Backlog
from pipeline.transport.base import BaseTransport
from pipeline.transport.batch import Batch, BatchSchema
from pipeline.transport.committed import Committed
from pipeline.transport.fatal import stop_process
from pipeline.transport.losses import Losses
from pipeline.transport.pace import Pace
from pipeline.transport.participant import Slice, is_virtual
from pipeline.transport.poison import Poison
from pipeline.transport.reader import Reader
from pipeline.transport.recovery import end_recovery_at, seek
from pipeline.transport.starts import Lost, There, start_of
from pipeline.transport.transaction import CAREFUL, next_offsets

BATCH, BATCH_BYTES = 4_000, 4 << 20
"""Records, and bytes of their values, in a batch at most."""
AHEAD = 3
"""Batches delivered and not acked at most: Faust's queues do not push back, and a slice would take the whole backlog."""
BACKLOG_INTERVALS = 3
"""Times `slice_seconds` that a slice lasts at most while more waits: a commit takes 20 to 40 ms, nothing else is done then."""
SLICE_RECORDS, SLICE_BYTES = 30_000, 32 << 20
"""Records, and bytes of their values, in a slice at most."""
MOST_REFUSED = 100
"""Slices aborted in a row after which something is wrong for good: the worker stops and says what."""
REFUSED_PAUSE = 0.2
"""Seconds to wait after a slice that the broker refused: a worker that was put out hears of it a moment later."""
TOPICS_DEADLINE = 10.0
"""Seconds that a worker waits for a topic which does not exist."""
END_DEADLINE = 60.0
"""Seconds after which the end of a slice is given up: a transaction is aborted by its coordinator long before, and librdkafka
has been seen to wait for ever when the coordinator of the group had died."""
GAP = "gap"
"""Holds partitions of which retention has taken records, until that is written down."""
UNACKED_DEADLINE = 60.0
"""Seconds without an ack, with something delivered, after which the worker stops and names what it waits for."""
SUSPECT_CUT = 64
"""The part of a batch that took too long which is tried next of its partition, at most: each try takes as long again."""
TWICE = 2
"""Times in a row that a record must take too long by itself before it is taken for the cause: the machine may have slept."""
GLANCE = 1.0
"""Seconds between two looks that count at most: for what is longer the process itself stood still."""
STOP_DEADLINE = 8.0
"""Seconds that a stopping worker waits for what the agents have in hand."""


class Suspects(NamedTuple):
    """A batch that took too long: there may be one record in it that does."""

    until: int
    """The offset of its last record."""
    most: int
    """Records of the partition in a batch at most, until that one is committed."""


class TooSlowError(HeadwaterError):
    """A record that takes longer by itself than a transaction may last."""


def _records_in(message: ConsumerMessage) -> int:
    return len(batch) if isinstance(batch := cast("Any", message.value), Batch) else 1


class Consumer(faust_consumer.Consumer):
    """One per worker."""

    transport: BaseTransport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backlog = Backlog()
        self.transaction = self.transport.transaction
        self.questions = self.transport.questions()
        self._assigned: set[TP] = set()
        self._flown: list[ConsumerMessage] = []
        self._acked_until = 0
        self._generation = 0
        self._offered = 0
        self._lost_before = self._refused = 0
        self._stood = False
        """Whether the slice under way was given up because a partition must stand."""
        self._rebalancing = self._stopping = self._closing = False
        self._stop_by = self._next_commit = 0.0
        self._moved = time.monotonic()
        self._between_slices, self._news = asyncio.Lock(), asyncio.Event()
        self._drainer: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self.poison = Poison()
        self.losses = Losses(self._is_free, self._tell_loss, self._told)
        self.transport.participants.insert(0, self.losses)
        self.transaction.blame = self._leave_out
        self.pace = Pace(SLICE_RECORDS, self.transaction.patience * 0.3)
        self._late = False
        """Whether the slice under way has lasted for too long."""
        self._late_at = ""
        """What was worked on when it had."""
        self._late_alone: dict[TP, tuple[int, int]] = {}
        """The record of a partition that took too long by itself, by its offset, and how often."""
        self._suspects: dict[TP, Suspects] = {}
        """Where a batch took too long: other partitions go on as usual, so that the next slices say nothing of it."""
        self._at_work: tuple[ConsumerMessage | None, float] = None, 0.0
        """What the agents work on, and the seconds since they began it."""
        self._longest: tuple[ConsumerMessage | None, float] = None, 0.0
        """What they have worked on the longest in this slice."""
        self._busy = self._waited = self._looked_at = 0.0
        """Seconds in which the agents had work in this slice; those since the last ack; when that was looked at."""
        self._claims: dict[TP, object] = {}
        """One object an assignment: an offset that was asked for under an earlier one must not be read from."""

    async def on_start(self) -> None:
        """Start the reader's thread and the slices."""
        conf = self.transport.consumer_conf()
        self.reader = Reader(
            conf,
            self.backlog,
            incremental=self.transport.group_protocol == "consumer",
            never_read=self._is_fence,
            on_records=self._arrive,
            on_end=self._on_end,
            on_gone=self._on_gone,
            starts=self._starts,
            rebalance=self._rebalance,
        )
        self.reader.start()
        self.transaction.commit_offsets = self.reader.commit
        self._drainer = asyncio.create_task(self._drain())

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for the agents' topics and the fences."""
        fences = {participant.fence for participant in self.transport.participants if participant.fence}
        real = fences | {topic for topic in topics if not is_virtual(topic)}
        await self._require(real)
        positions = {topic for participant in self.transport.participants for topic in participant.positions_of}
        self.transport.logs.update(await self.questions.logs(real | positions))
        await self.reader.subscribe(sorted(real))

    async def _require(self, topics: set[str]) -> None:
        deadline = time.monotonic() + TOPICS_DEADLINE
        while missing := await self.questions.missing(topics):  # one made a moment ago is not known everywhere at once
            if time.monotonic() > deadline:
                stop_process(
                    f"topics that agents or tables read do not exist: {', '.join(missing)}",
                    hint="make them, with as many partitions as the topics they are worked on with",
                )
            await asyncio.sleep(0.2)

    def _is_fence(self, topic: str) -> bool:
        return any(topic == participant.fence for participant in self.transport.participants)

    # -- state and sources ---------------------------------------------------------------------------------------

    def hold(self, tps: Iterable[TP], holder: str) -> None:
        """Keep partitions back until the holder's state of them is there; the others run."""
        for tp in tps:
            self.backlog.held.setdefault(tp, set()).add(holder)

    def release(self, tps: Iterable[TP], holder: str) -> None:
        """Let partitions run that nobody else holds."""
        for tp in tps:
            holders = self.backlog.held.get(tp, set())
            holders.discard(holder)
            if not holders:
                self.backlog.held.pop(tp, None)
        self._news.set()

    def stand(self, tps: Iterable[TP], holder: str, reason: str) -> None:
        """Give the slice under way up, and keep partitions back until they are released: no record of them is at fault."""
        self.hold(tps, holder)
        self.transaction.spoil(reason)
        self._stood = True

    def offer(self, tp: TP, value: Any) -> bool:
        """Add what a source has read to the backlog; False: the partition is not this worker's any more, drop it."""
        if tp not in self._assigned:
            return False
        self._offered += 1
        self.backlog.add(tp, [self._offering(tp, self._offered, value)], 0)
        self._news.set()
        return True

    def _offering(self, tp: TP, number: int, value: Any) -> ConsumerMessage:
        return ConsumerMessage(tp.topic, tp.partition, number, time.time(), 0, [], None, value, None, tp=tp)

    # -- where partitions are read from -------------------------------------------------------------------------------

    async def _starts(self, tps: set[TP]) -> dict[TP, int]:
        """Return the offsets from which new partitions are read; of those with a transaction under way, later."""
        starts: dict[TP, int] = {}
        for tp, there in (await self.questions.there(tps)).items():
            claim = self._claims[tp] = object()
            if there.committed.is_stable or self._is_changelog_tp(tp):
                starts[tp] = self._start(tp, there)
            else:
                self._in_background(self._start_when_decided(tp, claim))
        return starts

    async def _start_when_decided(self, tp: TP, claim: object) -> None:
        """Read a partition when the transaction has ended that a former owner had under way."""
        committed = (await self.questions.positions([tp]))[tp]
        there = (await self.questions.there([tp]))[tp]
        if self._claims.get(tp) is not claim:
            return
        await self._restart(tp, self._start(tp, replace(there, committed=committed)), claim)

    def _start(self, tp: TP, there: There) -> int:
        """Decide on the offset; raise FatalError where it cannot be known. A loss holds the partition until it is told."""
        if self._is_changelog_tp(tp):
            return there.low
        transport, first = self.transport, self.app.conf.consumer_auto_offset_reset
        pinned = transport.log_of(tp.topic)
        if not pinned.may_be(there.log):
            stop_process(f"the topic {tp.topic} changed while this worker ran: {pinned.difference(there.log)}")
        start = start_of(
            tp,
            there,
            self.app.conf.id,
            first="latest" if first == "latest" else "earliest",
            renews=tp.topic in transport.renews,
        )
        if start.is_renewed:
            self.log.warning("%s[%d] is another log than the one read before: it is read from its beginning", *tp)
        if start.lost is not None:
            self.log.error("%s", start.lost)
            self.hold({tp}, GAP)
            self.losses.add(start.lost)
        return start.offset

    async def _restart(self, tp: TP, offset: int, claim: object) -> None:
        """Read a partition from an offset on, as long as the claim holds; it may be known before the assignment is there."""

        def holds() -> bool:
            return self._claims.get(tp) is claim

        while holds() and not await self.reader.restart(tp, offset, holds):
            await asyncio.sleep(0.05)

    def _on_gone(self, tp: TP, offset: int) -> None:
        if (claim := self._claims.get(tp)) is not None:
            self._in_background(self._go_on_behind(tp, offset, claim))

    async def _go_on_behind(self, tp: TP, offset: int, claim: object) -> None:
        """Retention has overtaken this worker: when all that was fetched is committed, go on with what is left."""
        while self._claims.get(tp) is claim:
            async with self._between_slices:
                if not self.backlog.queues.get(tp) and self._claims.get(tp) is claim:
                    there = (await self.questions.there([tp]))[tp]
                    start = self._start(tp, There(Committed(offset, there.log), there.log, there.low, there.end))
                    break
            await asyncio.sleep(0.05)
        else:
            return
        await self._restart(tp, start, claim)

    def _is_free(self, tp: TP) -> bool:
        """Say whether the loss of a partition can be told: its state is there, and all that was read before is done."""
        return (
            tp in self._assigned
            and self.backlog.held.get(tp, set()) <= {GAP}
            and not any(participant.waits(tp) for participant in self.transport.participants)
        )

    def _tell_loss(self, lost: Lost) -> None:
        self.transport.tell_loss(lost)

    def _told(self, lost: Lost) -> None:
        """Let a partition go on behind its gap; in the transaction's thread."""

        def go_on() -> None:
            for participant in self.transport.participants:
                participant.skipped(lost.tp, lost.end)
            self.release({lost.tp}, GAP)

        self.app.loop.call_soon_threadsafe(go_on)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - the partition would stand still in silence
                await self._give_up("finding the offset to read from", error)

        task = asyncio.ensure_future(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- rebalance: called by the reader's thread, which waits --------------------------------------------------------

    async def _rebalance(self, new: set[TP], gone: set[TP], lost: bool) -> None:
        app = self.app
        self._rebalancing = True
        self._news.set()  # end the slice
        try:
            if app.should_stop or self._closing:
                self._assigned -= gone
                return
            app.on_rebalance_start()
            async with self._between_slices:
                new, gone = self._with_sources(new), self._with_sources(gone)
                self._assigned = (self._assigned | new) - gone
                for tp in gone:
                    self.backlog.drop(tp)
                    self.poison.drop(tp)
                    self._suspects.pop(tp, None)
                    self._late_alone.pop(tp, None)
                    self._claims.pop(tp, None)
                self.backlog.measure()
                self._generation += 1
                app.consumer_generation_id = self._generation
                self._tell_assignor()
                for participant in self.transport.participants:
                    participant.revoked(frozenset(gone))
                if gone:
                    await self.on_partitions_revoked(gone)
                if new or not gone:  # an assignment, an empty one too: a spare worker is ready as well
                    for participant in self.transport.participants:
                        participant.assigned(frozenset(new))
                    await self.on_partitions_assigned(set(self._assigned), self._generation)
        finally:
            self._rebalancing = False
            self._news.set()
        self.log.info(
            "Partitions: %d new, %d gone%s, %d in all",
            len(self.worked_on(new)),
            len(self.worked_on(gone)),
            " (lost)" if lost else "",
            len(self.worked_on(self._assigned)),
        )

    def worked_on(self, tps: Iterable[TP]) -> set[TP]:
        """Return those of the partitions that are read: a fence goes with another one, and counts for nothing of its own."""
        return {tp for tp in tps if not self._is_fence(tp.topic)}

    def _with_sources(self, tps: set[TP]) -> set[TP]:
        virtual = {TP(s.topic, tp.partition) for s in self.transport.sources for tp in tps if tp.topic == s.fence}
        return tps | virtual

    def _tell_assignor(self) -> None:
        """Say what Faust's assignor would have said; table recovery reads it."""
        actives: dict[str, list[int]] = {}
        for tp in self._assigned:
            if not (is_virtual(tp.topic) or self._is_fence(tp.topic)):  # what a participant recovers, Faust does not
                actives.setdefault(tp.topic, []).append(tp.partition)
        assignor = cast("Any", self.app.assignor)
        assignor._assignment = ClientAssignment(actives=actives, standbys={})  # noqa: SLF001
        assignor._topic_groups = dict.fromkeys(actives, 0)  # noqa: SLF001

    # -- slices -------------------------------------------------------------------------------------------------------

    def _arrive(self, runs: list[tuple[TP, list[Message], int]]) -> None:
        for tp, messages, size in runs:
            if tp in self._assigned:
                self.backlog.add(tp, messages, size)
        self.backlog.measure()
        self._news.set()

    def _may_run(self, tp: TP) -> bool:
        return (
            tp in self._active_partitions
            and self.flow_active
            and not self.app.rebalancing
            and not self._is_changelog_tp(tp)
        )

    def _may_recover(self, tp: TP) -> bool:
        return tp in self._active_partitions and self.flow_active and self._is_changelog_tp(tp)

    async def _drain(self) -> None:
        try:
            while not self._stopping:
                if (changelog := self.backlog.next(self._may_recover)) is not None:
                    await self.callback(self._take(changelog))
                elif not self._rebalancing and self._is_work():
                    async with self._between_slices:
                        await self._slice()
                else:
                    self._moved = time.monotonic()
                    self._news.clear()
                    await wait_at_most(self._news, 0.01 if self.app.rebalancing else 0.1)
        except Exception as error:  # noqa: BLE001 - without its slices a worker would stand still in silence
            await self._give_up("the slices", error)

    def standing(self) -> float:
        """Return the seconds since which there is work and nothing of it was committed."""
        return time.monotonic() - self._moved

    def blame(self, batch: Batch, error: Exception) -> bool:
        """Redo the slice without the record at which an agent has raised; False: it must be the agent, stop.

        The agent acks the batch as usual. It is delivered again record by record, then the guilty one alone, `error` set.
        """
        self.log.error("An agent failed at %r; its records are done again one by one:", batch, exc_info=error)
        self.transaction.spoil(f"an agent failed at {batch!r}")
        return self.poison.blame(batch, error)

    async def on_task_error(self, exc: BaseException) -> None:
        """End the worker when an agent has raised: its slice must not commit, and Faust would ack the message."""
        await self._give_up("an agent", exc)

    async def _give_up(self, who: str, error: BaseException) -> NoReturn:
        reason = error.message if isinstance(error, HeadwaterError) else f"{who} failed: {error!r}"
        if not isinstance(error, HeadwaterError):
            self.log.error("Unexpected, in %s:", who, exc_info=error)
        self.transaction.spoil(reason)
        if self.transaction.open:  # not when it failed after the commit
            await self.transaction.run(self.transaction.abort, Slice(self.transaction.producer), reason)
        stop_process(
            reason, hint=getattr(error, "hint", "") or "start the worker again: it finds the truth in the broker"
        )

    def _is_work(self) -> bool:
        if self.app.rebalancing or not self.flow_active:
            return False
        if self.backlog.any(self._may_run) or self.transaction.open:  # open: sends from timers, web pages
            return True
        return any(participant.due() for participant in self.transport.participants)

    async def _slice(self) -> None:
        # Pinned here, before the first record is delivered, and never read again: a commit under it proves that
        # nobody else had these partitions meanwhile.
        membership = self.reader.membership
        if membership is None:
            await asyncio.sleep(0.05)
            return
        self._late, self._late_at, self._busy, self._waited = False, "", 0.0, 0.0
        self._at_work = self._longest = None, 0.0
        await self._deliver()
        records, flown = sum(map(_records_in, self._flown)), tuple(self._flown)
        if await self._end(membership):
            self._refused = 0
            self.pace.done(records, self._busy)
        elif self._stood:
            self._stood = False
        elif not self._stopping:
            if self._late:
                self._took_too_long(flown, records)
            self._refused += 1
            if self._refused >= MOST_REFUSED:
                stop_process(f"{self._refused} slices in a row were aborted: {self.transaction.last_abort}")
            if self.transaction.careful:
                self.pace.cap(CAREFUL)
            await asyncio.sleep(REFUSED_PAUSE)

    def _took_too_long(self, flown: Sequence[ConsumerMessage], records: int) -> None:
        """Make the next slice smaller; a record that is too slow by itself, twice, is dead-lettered or stops the worker.

        Which one it is, is looked for in the batch that took the longest.
        """
        self.pace.late(records, self._busy)
        message, seconds = (flown[0], self._busy) if len(flown) == 1 else self._longest
        if message is None or is_virtual(message.topic):
            return
        if (count := _records_in(message)) > 1:
            self._suspects[message.tp] = Suspects(message.offset, max(1, count // SUSPECT_CUT))
            return
        if seconds < self.transaction.patience:
            return
        offset, times = self._late_alone.get(message.tp, (message.offset, 0))
        times = times + 1 if offset == message.offset else 1
        self._late_alone[message.tp] = message.offset, times
        if times < TWICE:
            return
        error = TooSlowError(
            f"{self._named(message)} took {seconds:.1f} s by itself, {times} times; a slice may last "
            f"{self.transaction.patience:.0f} s",
            hint='raise "transaction.timeout.ms" of [kafka.properties], or make the step quicker',
        )
        batch = cast("Any", message.value)
        if not (isinstance(batch, Batch) and self._leave_out(batch, error)):
            raise error

    def _leave_out(self, batch: Batch, error: Exception) -> bool:
        """Have a record left out, where its agent writes it away; False: it does not."""
        return self.transport.leaves_out(error) and self.poison.blame(batch, error)

    def _named(self, message: ConsumerMessage) -> str:
        """Return the words for a message that an agent has in hand: which agent, and where the message is."""
        agents = [
            agent.name.rpartition(".")[2].removeprefix("]") or agent.name
            for agent in self.app.agents.values()
            if message.topic in agent.get_topic_names()
        ]
        who = f"the agent {' or '.join(agents)}" if agents else "nobody knows which agent"
        words = self.transport.doing or self._late_at
        doing = f" ({words})" if words else ""
        batch = cast("Any", message.value)
        where = f"{batch.first_offset} to {batch.last_offset}" if isinstance(batch, Batch) else f"{message.offset}"
        return f"{who}{doing}: {message.topic}[{message.partition}] offset {where}"

    async def _deliver(self) -> None:
        end = time.monotonic() + BACKLOG_INTERVALS * self.transport.slice_seconds
        room, bytes_left = self.pace.limit, SLICE_BYTES
        self._looked_at = time.monotonic()
        while (
            not self._rebalancing
            and not self._stopping
            and room > 0
            and bytes_left > 0
            and (now := time.monotonic()) < end
        ):
            if len(self._flown) - self._acked_until >= AHEAD and self._unfinished():
                await self._wait_for_ack_of_one()
            elif (tp := self.backlog.next(self._may_run)) is not None:
                self._look(working=self._unfinished())
                message = self._take(tp, room)
                self._flown.append(message)
                room -= _records_in(message)
                bytes_left -= message.serialized_value_size
                await self.callback(message)
            elif self._unfinished():
                await self._wait_for_ack_of_one()
            elif now < self._next_commit:
                self._look(working=False)
                self._news.clear()
                await wait_at_most(self._news, min(end, self._next_commit) - now)
                self._look(working=False)
            else:
                break
        while self._unfinished() and (not self._stopping or self._in_hand()):
            await self._wait_for_ack_of_one()
        self._look(working=bool(self._flown))

    def _look(self, *, working: bool) -> None:
        """Count the time since the last look, if the agents had work in it; give a slice up that lasts for too long."""
        now = time.monotonic()
        passed, self._looked_at = min(now - self._looked_at, GLANCE), now
        if not working:
            return
        self._busy += passed
        self._waited += passed
        current = self._current()
        before, seconds = self._at_work
        self._at_work = current, passed + (seconds if current is before else 0.0)
        if self._at_work[1] > self._longest[1]:
            self._longest = self._at_work
        if self._busy > self.transaction.patience and not self._late:
            self._late = True
            self._late_at = self.transport.doing
            waiting = f"; {self._named(current)}" if current is not None else ""
            self.transaction.spoil(f"it took more than {self.transaction.patience:.0f} s{waiting}")
            self.log.warning(
                "A slice lasts for more than %.0f s, and will be done again%s", self.transaction.patience, waiting
            )
        if self._waited > UNACKED_DEADLINE and self._unfinished():
            stop_process(
                f"{self._named(self._flown[self._acked_until])} is not done after {self._waited:.0f} s",
                hint="is its step stuck? Every message must be acked; docs/how-to/trouble.md",
            )

    def _current(self) -> ConsumerMessage | None:
        """Return what the agents work on: what a step has in hand, else the first message that is not acked."""
        if not self._unfinished():
            return None
        waiting, batch = self._flown[self._acked_until :], cast("Any", self.transaction.in_hand)
        return next((message for message in waiting if batch is not None and message.value is batch), waiting[0])

    def _in_hand(self) -> bool:
        """Say whether a stopping worker must wait for an agent: one that has taken a message and not acked it.

        Faust has cleared the queues by then: what was in them is done again by the next owner.
        """
        return time.monotonic() < self._stop_by and any(
            not message.acked and getattr(message, "started", not isinstance(message.value, Batch))
            for message in self._flown[self._acked_until :]
        )

    def _unfinished(self) -> bool:
        while self._acked_until < len(self._flown) and self._flown[self._acked_until].acked:
            self._acked_until += 1
            self._waited = 0.0
        return self._acked_until < len(self._flown)

    async def _wait_for_ack_of_one(self) -> None:
        self._waiting_for_ack = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._waiting_for_ack], timeout=0.02)
        self._waiting_for_ack = None
        self._look(working=True)

    async def _end(self, membership: bytes) -> bool:
        """End the slice: commit, or put everything back. True if it was committed."""
        transaction = self.transaction
        offsets = {tp: offset for tp, offset in next_offsets(self._flown).items() if not is_virtual(tp.topic)}
        work = Slice(transaction.producer, tuple(self._flown), offsets)
        await self.app.producer.flush()
        if self._unfinished():
            transaction.spoil("the worker is stopping")
        if self.reader.lost != self._lost_before:
            self._lost_before = self.reader.lost
            transaction.spoil("the partitions were lost")
        transaction.idle.clear()
        try:
            committed = await asyncio.wait_for(transaction.run(transaction.commit, work, membership), END_DEADLINE)
        except asyncio.TimeoutError:
            stop_process(
                f"Kafka has not answered for {END_DEADLINE:.0f} s: the slice under way was not committed, or unknown"
            )
        finally:
            transaction.idle.set()
        # The first records after a pause commit at once; under load there is one transaction an interval.
        self._next_commit = time.monotonic() + self.transport.slice_seconds
        if committed:
            self._moved = time.monotonic()
            self.poison.committed(work)
            self._clear_of_suspicion(work)
            self._committed_offset.update(work.offsets)
            self.app.monitor.on_tp_commit(work.offsets)
        else:
            self._give_back()
        for tp in {message.tp for message in self._flown}:
            self._acked.pop(tp, None)
            self._acked_index.pop(tp, None)
        self._flown.clear()
        self._acked_until = 0
        self.backlog.measure()
        return committed

    def _clear_of_suspicion(self, work: Slice) -> None:
        for tp, offset in work.offsets.items():
            if tp in self._suspects and offset > self._suspects[tp].until:
                del self._suspects[tp]
            if tp in self._late_alone and offset > self._late_alone[tp][0]:
                del self._late_alone[tp]

    def _give_back(self) -> None:
        for message in reversed(self._flown):
            if message.tp not in self._assigned:
                continue
            if is_virtual(message.topic):
                records: list[Any] = [self._offering(message.tp, message.offset, message.value)]
            elif isinstance(batch := cast("Any", message.value), Batch):
                records = list(batch.records)
            else:
                records = [cast("Any", message).origin]
            self.backlog.give_back(message.tp, records)

    def _batch_schema(self, topic: str) -> BatchSchema | None:
        """Return the schema of a batch-native topic, None for one of single events."""
        channels = cast("Any", self.app.topics)._topic_name_index.get(topic, ())  # noqa: SLF001
        return next((channel.schema for channel in channels if isinstance(channel.schema, BatchSchema)), None)

    def _take(self, tp: TP, room: int = BATCH) -> ConsumerMessage:
        if is_virtual(tp.topic):
            (message,), _ = self.backlog.take(tp, 1, 0)
            message.generation_id = self._generation
            return cast("ConsumerMessage", message)
        schema = self._batch_schema(tp.topic)
        if schema is None:
            (record,), _ = self.backlog.take(tp, 1, 0)
            message = self._to_message(tp, record)
        else:
            most = 1 if tp in self.poison.suspects else min(BATCH, room)
            if tp in self._suspects:
                most = min(most, self._suspects[tp].most)
            records, size = self.backlog.take(tp, most, BATCH_BYTES)
            batch = Batch(tp.topic, tp.partition, records, schema.decoder)
            self.poison.mark(batch)
            message = self._to_message(tp, records[-1])
            message.key, message.value, message.headers = None, cast("Any", batch), []
            message.serialized_value_size = size
        if not self.backlog.has_room.is_set():
            self.backlog.measure()
        return message

    def _to_message(self, tp: TP, record: Message) -> ConsumerMessage:
        kind, timestamp = record.timestamp()
        key, value = record.key(), record.value()
        message = ConsumerMessage(
            tp.topic,
            tp.partition,
            cast("int", record.offset()),
            timestamp / 1000,
            kind,
            cast("list[tuple[str, bytes]]", record.headers() or []),
            key,
            value,
            None,
            len(key or b""),
            len(value or b""),
            tp,
            generation_id=self._generation,
        )
        cast("Any", message).origin = record
        return message

    # -- the end ------------------------------------------------------------------------------------------------------

    async def wait_empty(self) -> None:
        """Stop: end the last slice, leave the group. Called by Faust after it has cleared the agents' queues."""
        if not self.app.should_stop or self._closing or self._drainer is None:
            return
        self._stop_by = time.monotonic() + STOP_DEADLINE
        self._stopping = self._closing = True
        self._news.set()
        await asyncio.wait([self._drainer], timeout=STOP_DEADLINE + 1)  # it ends its slice; nobody else may
        if not self._drainer.done():
            stop_process("the broker does not answer: the slice under way was neither committed nor aborted")
        if self.transaction.open:
            await self.transaction.run(
                self.transaction.abort, Slice(self.transaction.producer), "the worker is stopping"
            )
        for participant in self.transport.participants:
            participant.revoked(frozenset(self._assigned))
        self._assigned.clear()
        await self.reader.close()

    async def commit_and_end_transactions(self) -> None:
        """Stop without waiting for the agents is the same here: what is not acked is done again."""
        await self.wait_empty()

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Do nothing: slices commit."""
        return False

    # -- recovery of app.Table ----------------------------------------------------------------------------------------

    def _on_end(self, tp: TP, offset: int) -> None:
        if self._is_changelog_tp(tp) and not self._is_fence(tp.topic):
            self._in_background(end_recovery_at(self, self.backlog, tp, offset))

    # -- the rest of Faust's consumer interface -----------------------------------------------------------------------

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """Create a topic if it is missing."""
        await self.transport.create_topic(topic, partitions, replication, **options)

    def assignment(self) -> set[TP]:
        """Return the partitions of this worker, those of sources included."""
        return set(self._assigned)

    async def perform_seek(self) -> None:
        """Do nothing: librdkafka starts at the stable committed offset by itself."""

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Return the committed offsets of the assignment."""
        found = {tp: await self.questions.committed(tp) for tp in self._assigned if not is_virtual(tp.topic)}
        return {tp: offset for tp, offset in found.items() if offset is not None}

    async def _seek(self, partition: TP, offset: int) -> None:
        await self.seek_wait({partition: offset})

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Read on from other offsets; table recovery does."""
        for tp, offset in partitions.items():
            await self.reader.call(seek(tp, offset))
            self.backlog.drop(tp)

    async def position(self, tp: TP) -> int | None:
        """Return the next offset that will be fetched."""
        answer = await self.reader.call(lambda rd: rd.position([TopicPartition(*tp)]))
        return int(answer[0].offset)

    async def earliest_offsets(self, *tps: TP) -> dict[TP, int]:
        """Return the first offsets."""
        return {tp: low for tp, (low, _) in (await self.questions.watermarks(tps)).items()}

    async def highwaters(self, *tps: TP) -> dict[TP, int]:
        """Return the ends, before open transactions."""
        return {tp: high for tp, (_, high) in (await self.questions.watermarks(tps)).items()}

    def highwater(self, tp: TP) -> int:
        """Return an unknown end: lag is measured elsewhere."""
        return -1

    def topic_partitions(self, topic: str) -> int | None:
        """Return an unknown count: the producer partitions."""
        return None

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """Return the partition of a key."""
        if partition is not None:
            return partition
        return self.app.producer.key_partition(topic, key or b"").partition

    def resume_flow(self) -> None:
        """Let slices run again."""
        super().resume_flow()
        self._news.set()

    async def _drain_messages(self, fetcher: Any) -> None:
        with suppress(asyncio.CancelledError):  # Faust stops its idle fetcher so, in a rebalance
            await fetcher.wait_until_stopped()

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return False

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, list[Any]]:
        return {}

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)
