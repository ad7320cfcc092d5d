"""From where the partitions of a worker are read: at the assignment, after a former owner's transaction, behind a gap.

What the offset is, is decided in `starts`, which is pure. This module asks, waits and reports.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any, Protocol

from faust.types import TP

from pipeline.transport.base import BaseTransport
from pipeline.transport.committed import Committed
from pipeline.transport.fatal import stop_process
from pipeline.transport.losses import Losses
from pipeline.transport.questions import Questions
from pipeline.transport.starts import LostRecords, PartitionState, start_of

log = logging.getLogger(__name__)

GAP = "gap"
"""Holds partitions of which retention has taken records, until that is recorded."""


class Restarts(Protocol):
    """The reader, as far as it is needed here."""

    async def restart(self, tp: TP, offset: int, holds: Callable[[], bool]) -> bool:
        """Read a partition from an offset, if the claim holds; False: the assignment is not there yet."""


class BeginningsHost(Protocol):
    """What the consumer does here."""

    @property
    def reader(self) -> Restarts:
        """The thread that polls."""

    @property
    def between_slices(self) -> asyncio.Lock:
        """Taken while a slice runs."""

    def is_changelog(self, tp: TP) -> bool:
        """Say whether a partition is of a changelog that Faust reads, from its beginning."""

    def has_backlog(self, tp: TP) -> bool:
        """Say whether fetched records of a partition wait."""

    def is_held_by_none_but(self, tp: TP, holder: str) -> bool:
        """Say whether a partition is this worker's, and nobody else holds it."""

    def hold(self, tps: Iterable[TP], holder: str) -> None:
        """Keep partitions back."""

    def release(self, tps: Iterable[TP], holder: str) -> None:
        """Let partitions run."""

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the slices; its failure ends the worker."""


class Beginnings:
    """Decides, on the event loop, from where partitions are read."""

    def __init__(
        self, host: BeginningsHost, transport: BaseTransport, questions: Questions, group: str, *, latest: bool
    ) -> None:
        """`latest`: what the group has never read begins at its end."""
        self._host, self._transport, self._questions = host, transport, questions
        self._group, self._latest = group, latest
        self._claims: dict[TP, object] = {}
        """One object an assignment: an offset that was asked for under an earlier one must not be read from."""
        self._losses = Losses(self._is_free, self._tell, self._told)
        transport.participants.insert(0, self._losses)

    def drop(self, tp: TP) -> None:
        """Forget a partition that is not this worker's any more."""
        self._claims.pop(tp, None)

    async def of(self, tps: set[TP]) -> dict[TP, int]:
        """Return the offsets from which new partitions are read; of those with a transaction under way, later."""
        starts: dict[TP, int] = {}
        for tp, there in (await self._questions.there(tps)).items():
            claim = self._claims[tp] = object()
            if there.committed.is_stable or self._host.is_changelog(tp):
                starts[tp] = self._start(tp, there)
            else:
                self._host.in_background(self._start_when_decided(tp, claim))
        return starts

    async def _start_when_decided(self, tp: TP, claim: object) -> None:
        """Read a partition when the transaction has ended that a former owner had under way."""
        committed = (await self._questions.positions([tp]))[tp]
        there = (await self._questions.there([tp]))[tp]
        if self._claims.get(tp) is not claim:
            return
        await self._restart(tp, self._start(tp, replace(there, committed=committed)), claim)

    def _start(self, tp: TP, there: PartitionState) -> int:
        """Decide on the offset; raise FatalError where it cannot be known. A loss holds the partition until it is reported."""
        if self._host.is_changelog(tp):
            return there.low
        pinned = self._transport.log_of(tp.topic)
        if not pinned.may_be(there.log):
            stop_process(f"the topic {tp.topic} changed while this worker ran: {pinned.difference(there.log)}")
        start = start_of(
            tp,
            there,
            self._group,
            first="latest" if self._latest else "earliest",
            renews=tp.topic in self._transport.renews,
        )
        if start.is_renewed:
            log.warning("%s[%d] is another log than the one read before: it is read from its beginning", *tp)
        if start.lost is not None:
            log.error("%s", start.lost)
            self._host.hold({tp}, GAP)
            self._losses.add(start.lost)
        return start.offset

    async def _restart(self, tp: TP, offset: int, claim: object) -> None:
        """Read a partition from an offset on, as long as the claim holds; it may be known before the assignment is there."""

        def holds() -> bool:
            return self._claims.get(tp) is claim

        while holds() and not await self._host.reader.restart(tp, offset, holds):
            await asyncio.sleep(0.05)

    def gone(self, tp: TP, offset: int) -> None:
        """Continue with what is left: retention has overtaken this worker at an offset."""
        if (claim := self._claims.get(tp)) is not None:
            self._host.in_background(self._go_on_behind(tp, offset, claim))

    async def _go_on_behind(self, tp: TP, offset: int, claim: object) -> None:
        """When all that was fetched is committed, read on behind what is gone."""
        while self._claims.get(tp) is claim:
            async with self._host.between_slices:
                if not self._host.has_backlog(tp) and self._claims.get(tp) is claim:
                    there = (await self._questions.there([tp]))[tp]
                    start = self._start(
                        tp, PartitionState(Committed(offset, there.log), there.log, there.low, there.end)
                    )
                    break
            await asyncio.sleep(0.05)
        else:
            return
        await self._restart(tp, start, claim)

    def _is_free(self, tp: TP) -> bool:
        """Say whether the loss of a partition can be reported: its state is there, and all that was read before is done."""
        return self._host.is_held_by_none_but(tp, GAP) and not any(
            participant.waits(tp) for participant in self._transport.participants
        )

    def _tell(self, lost: LostRecords) -> None:
        self._transport.tell_loss(lost)

    def _told(self, lost: LostRecords) -> None:
        """Let a partition continue behind its gap; in the transaction's thread."""

        def go_on() -> None:
            for participant in self._transport.participants:
                participant.skipped(lost.tp, lost.end)
            self._host.release({lost.tp}, GAP)

        self._transport.app.loop.call_soon_threadsafe(go_on)
