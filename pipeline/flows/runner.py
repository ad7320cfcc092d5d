"""Runs the flows over the batches of raw, as the transform agent: in the transaction's thread, if nothing else is said."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

from models.change import Change, decode
from pipeline.flows.compile import CompileContext, compile_flow, re_emits, schema_registry
from pipeline.flows.held import WaitingChanges
from pipeline.flows.lint import lint
from pipeline.flows.output import STAGE, FlowOutput
from pipeline.flows.references import References
from pipeline.flows.resend import Resend
from pipeline.flows.running_flow import RejectLimit, RunningFlow
from pipeline.flows.versions import FlowVersions
from pipeline.runtime.worker import Worker
from pipeline.services.keys import mask_key
from pipeline.settings.enrich import JoinSettings
from pipeline.settings.flows import FlowSettings
from pipeline.state.flow_state import FlowState, JoinEntry, Reference
from pipeline.state.held_changes import FlowItem
from pipeline.steps.enrich import has_sort_key, key_schema
from pipeline.steps.flow import Given, Result, pieces
from pipeline.steps.python import load_functions
from pipeline.transport import Batch
from pipeline.transport.consumer import Consumer

log = logging.getLogger(__name__)
PIECE = 500
"""Changes that go through the flows at once: 1 to 3 us a change less than with batches of 4,000."""


class FlowRunner:
    """The flows of a worker, and what they need: reference tables, what is parked, the version that runs."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self.topics = worker, worker.topics
        self._clock = time.monotonic
        """What waits for references are counted with: the steps of the flows have the same."""
        self._functions = load_functions(worker.settings.modules)
        self._registry = schema_registry(worker.settings)
        self._references = References(worker)
        transport, topics = worker.transport, worker.topics
        # It frees what waits before the reference tables and the others finish the slice.
        self.state = FlowState(
            transport,
            topics.raw,
            topics.flow_state,
            worker.settings.state_dir,
            is_there=lambda partition, table, key: self._references.item(partition, table, key) is not None,
            release=self._release,
            watched=self._references.watched,
            emit=self._emit,
            is_ready=lambda: self.versions.are_there,
        )
        transport.add_participant(self.state)
        self._references.begin(self.state, worker.settings.flows)
        own, client_id = worker.settings.flows, worker.app.conf.broker_client_id
        gate = topics.raw, topics.retry
        self.versions = FlowVersions(transport, topics.flows, gate, own, self._prepare, self._build, client_id)
        transport.add_participant(self.versions)
        worker.pause_reasons.append(lambda: self.versions.stopped)
        self._output = FlowOutput(worker, self._flows)
        self._resend = Resend(self.state, self._references, self._output, self._flows, self._run, self._stop_rejecting)
        settle = partial(self._settle, is_fresh=False)
        self._waiting = WaitingChanges(worker, self.state, self._output, self._flows, settle, self._clock)

    def _flows(self) -> Sequence[RunningFlow]:
        return self.versions.current

    def _release(self, partition: int, place: FlowItem) -> None:
        self._waiting.release(partition, place)

    def _emit(self, partition: int, reference: Reference, entries: Sequence[JoinEntry]) -> None:
        self._resend.emit(partition, reference, entries)

    # -- flows are built ----------------------------------------------------------------------------------------------

    def _prepare(self, flows: Sequence[FlowSettings]) -> None:
        """Follow the reference tables that are new; on the event loop."""
        for table in {table for flow in flows for table in flow.references}:
            if self._references.follow(table):
                consumer = cast("Consumer", self._worker.app.consumer)
                self._references.whole[table].assigned(frozenset(consumer.assignment()))

    def _build(self, flows: Sequence[FlowSettings]) -> list[RunningFlow]:
        """Compile flows; in a thread of its own."""
        tables = {table for flow in flows for table in flow.references}
        self._references.watch(flows)
        means = CompileContext(
            references=self._references.finders(flows),
            key_schema=self._references.key_schema,
            rows={table: self._references.whole[table] for table in tables},
            functions=self._functions,
            topic=self.topics.sink,
            registry=self._registry,
        )
        keys = {flow.name: mask_key(flow.mask_key) for flow in flows if flow.mask_key is not None and flow.mask}
        self._output.keys |= keys
        for flow in flows:
            for doubt in lint(flow):
                log.warning("flow %s, %s: %s (headwater flows lint)", flow.name, doubt.place, doubt.problem)
        return [
            RunningFlow(
                flow,
                compile_flow(flow, means),
                RejectLimit(flow.reject_limit),
                flow.order == "strict" or any(isinstance(step, JoinSettings) and step.hold for step in flow.enrich),
                any(map(re_emits, flow.enrich)),
                any(step.kind in {"sql", "lookup", "python"} for step in flow.enrich),
                keys.get(flow.name),
            )
            for flow in flows
        ]

    # -- batches come -------------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """Run the changes of a batch through every flow, in pieces: what is held no longer than needed stays in the cache."""
        if batch.topic == self.topics.retry:
            self._waiting.again(batch)
            return
        flows = self.versions.current
        partitioned = frozenset(table for flow in flows for table in flow.settings.partitioned)
        most = len(batch) if any(flow.asks for flow in flows) else PIECE
        for given in pieces(self._given(batch, partitioned), partitioned, most):
            changed = self._references.put_own(batch.partition, given, partitioned) if partitioned else ()
            for flow in flows:
                self._settle(flow, batch.partition, given, is_fresh=True)
            for reference in changed:
                self._resend.own_item_changed(batch.partition, reference)
        metrics = self._worker.metrics
        metrics.count(metrics.changes, len(batch), STAGE)

    def _given(self, batch: Batch, partitioned: frozenset[str]) -> Iterator[Given]:
        """Yield the changes of a batch, and put the items of global reference tables."""
        references = self._references.whole
        record: Any  # librdkafka's: `cast` would cost as much as what it is put on
        now = self._clock()
        for index, record in enumerate(batch.records):
            value = record.value() or b""
            try:
                change = decode(value)
                if references and change.table in references:
                    self._put_item(batch.partition, change)
                if partitioned and change.table in partitioned:
                    key_schema(change)  # raises here what would be raised where the item is put
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                self._worker.reject(batch, index, STAGE, error)
                continue
            yield Given(record.offset(), record.key(), value, change, now, record.headers() or ())

    def _put_item(self, partition: int, change: Change) -> None:
        """Put the item of a global reference table; a flow that joins one with a sort key is paused: it would find nothing."""
        if has_sort_key(change):
            for flow in self.versions.current:
                if change.table in flow.settings.joined:
                    self._stop(
                        flow,
                        f"joins the table {change.table}, which has a sort key: a foreign key cannot name one item of it",
                    )
        self._references.put(partition, change)

    def _settle(self, flow: RunningFlow, partition: int, given: Sequence[Given], *, is_fresh: bool) -> None:
        """Run changes of one partition through a flow, and write what it made of them, in their order; park what must wait."""
        sent, seen, parked, rejected = [], 0, 0, 0
        if flow.follows_references:
            given = self._resend.with_doubts(flow, partition, given)
        results = self._run(flow, partition, given)
        held = self.state.held(partition) if flow.parks else None
        for result in results:
            seen += 1
            if held is not None and self._waiting.holds(flow, held, result):
                parked += 1
            elif result.error is not None:
                rejected += 1
                self._output.reject(flow.name, partition, result.given, result.error)
            else:
                sent.append(result)
        self._output.send(flow, partition, sent)
        if flow.re_emits:
            self._resend.remember(flow, partition, given, results, sent)
        metrics, name = self._worker.metrics, flow.settings.name
        for outcome, count in (("rejected", rejected), ("parked", parked), ("taken", len(sent))):
            metrics.count(metrics.flow_changes, count, name, outcome)
        if flow.limit.add(seen, rejected) and is_fresh:
            self._stop_rejecting(flow)

    def _run(self, flow: RunningFlow, partition: int, given: Sequence[Given]) -> list[Result]:
        """Run changes through a flow. What the broker has refused of a change makes it a rejected one of the flow."""
        self._references.partition, name = partition, flow.settings.name
        self._worker.transport.doing = f"the flow {name}"
        results = flow.steps.run(given)
        if refused := self._worker.transport.transaction.refused:
            for result in results:
                error = refused.of((name, partition, result.given.offset))
                if error is not None:
                    result.error, result.messages = error, []
        return results

    def _stop_rejecting(self, flow: RunningFlow) -> None:
        share = f"{flow.settings.reject_limit:.0%}"
        self._stop(flow, f"rejects more than {share} of its changes (reject_limit): see headwater dlq list")

    def _stop(self, flow: RunningFlow, why: str) -> None:
        """Give the slice up; `transform` stops until other flows are applied."""
        reason = (
            f"the flow {flow.settings.name} {why}; it is paused and transform has stopped: fix the flow, then "
            "headwater flows apply"
        )
        self._worker.transport.transaction.spoil(reason)
        loop: asyncio.AbstractEventLoop = self._worker.app.loop
        loop.call_soon_threadsafe(self.versions.pause, flow.settings.name, reason)
