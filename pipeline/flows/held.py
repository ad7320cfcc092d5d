"""Changes that wait: behind a rejected one of their item, or for a reference; and what is tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from models.change import decode
from models.dead_letter import FLOW, OFFSET, DeadLetter, Headers
from pipeline.errors import HeadwaterError
from pipeline.flows.output import STAGE, FlowOutput
from pipeline.flows.running_flow import RunningFlow, given_of, waiting_of
from pipeline.runtime.worker import Worker
from pipeline.state.flow_state import FlowState
from pipeline.state.held_changes import FlowItem, Head, HeldChanges
from pipeline.steps.enrich import MissingReferenceError
from pipeline.steps.flow import Given, Result
from pipeline.steps.secrecy import fingerprint_of
from pipeline.transport import Batch

log = logging.getLogger(__name__)
SKIP = "headwater.skip"
"""Header of a message on the retry topic: the change itself is discarded, those behind it continue."""


class WaitingChanges:
    """Changes that wait in a flow: parked, let go, tried again, given up."""

    def __init__(
        self,
        worker: Worker,
        state: FlowState,
        output: FlowOutput,
        flows: Callable[[], Sequence[RunningFlow]],
        settle: Callable[[RunningFlow, int, Sequence[Given]], None],
        clock: Callable[[], float],
    ) -> None:
        """`settle` runs changes of a partition through a flow and writes what comes of it."""
        self._worker, self._state, self._output, self._flows = worker, state, output, flows
        self._settle, self._clock = settle, clock

    def holds(self, flow: RunningFlow, held: HeldChanges, result: Result) -> bool:
        """Park a change that must wait: behind another of its item, or for a reference. Return whether it was."""
        given, error = result.given, result.error
        place = FlowItem(flow.settings.name, given.key or b"")
        waits = held.head(place) is not None
        if not waits and isinstance(error, MissingReferenceError) and error.until:
            wait = max(0.0, error.until - self._clock())
            held.block(place, Head(*place, given.offset, (error.table, error.key), wait))
            waits = True
        if waits:
            held.hold(place, waiting_of(given))
        elif error is not None and flow.is_strict:
            held.block(place, Head(*place, given.offset))
        return waits

    def release(self, partition: int, place: FlowItem) -> None:
        """Send what has waited for a reference."""
        self._go_on(partition, place, [], None)

    def again(self, batch: Batch) -> None:
        """Retry rejected changes, or discard them, and let what waits behind them continue."""
        for index, record in enumerate(batch.records):
            headers = cast("Headers", record.headers() or [])
            said = {name: (value or b"").decode(errors="replace") for name, value in headers}
            try:
                offset, at = int(said[OFFSET]), self._clock()
            except (KeyError, ValueError) as error:  # somebody else writes here
                self._worker.reject(batch, index, STAGE, error)
                continue
            names = [said[FLOW]] if FLOW in said else [one.settings.name for one in self._flows()]
            if SKIP in said:  # its value is not asked for: whoever skips it may have lost the key
                self._give_up(batch.partition, names, offset)
                continue
            own = [(name, value) for name, value in headers if name not in {FLOW, OFFSET}]
            sealed = record.value() or b""
            try:
                key, value = self._output.opened(said.get(FLOW, ""), record.key(), sealed)
                given = Given(offset, key, value, decode(value), at, own)
            except Exception as error:  # noqa: BLE001 - it is a dead letter again, of the same place
                place, flow = (self._worker.topics.raw, batch.partition, offset), said.get(FLOW, "")
                self._worker.write_dead_letter(
                    DeadLetter(*place, STAGE, error, record.key(), sealed, own, flow, fingerprint_of(sealed))
                )
                continue
            for name in names:
                self._go_on(batch.partition, FlowItem(name, key or b""), [given], offset)

    def _give_up(self, partition: int, flows: Iterable[str], offset: int) -> None:
        """Let what waits behind a discarded change continue."""
        for flow in flows:
            if (place := self._state.held(partition).behind(flow, offset)) is not None:
                self._go_on(partition, place, [], offset)

    def _go_on(self, partition: int, place: FlowItem, first: list[Given], offset: int | None) -> None:
        """Do what has waited; `first` is a dead letter that is retried, `offset` the place on raw of the one it is about."""
        flow, held = self._output.flow(place.flow), self._state.held(partition)
        head = held.head(place)
        if head is not None and offset not in {None, head.offset}:
            # It is not this dead letter that the others wait for: it waits with them.
            for one in first:
                held.hold(place, waiting_of(one))
            return
        waiting = held.free(place)
        given = first + [given_of(one, one.at) for one in waiting]
        if flow is None:
            gone = HeadwaterError(f"the flow {place.flow} no longer exists")
            for incoming in given:
                self._output.reject(place.flow, partition, incoming, gone)
            return
        self._settle(flow, partition, given)
