"""References change: what was joined with them is sent again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from msgspec import structs

from pipeline.flows.output import FlowOutput
from pipeline.flows.references import References
from pipeline.flows.running_flow import RunningFlow, given_of, waiting_of
from pipeline.settings.enrich import PARTITIONED
from pipeline.state.flow_state import FlowState, JoinedItem, JoinEntry, Reference
from pipeline.state.held_changes import FlowItem
from pipeline.steps.enrich import digest
from pipeline.steps.flow import Given, Result

log = logging.getLogger(__name__)
RE_EMITTED = "re_emitted"
"""Header of what is sent again because a reference has changed: the reference's table."""


class Resend:
    """Sends the last changes of items again, when a reference that they were joined with has changed."""

    def __init__(
        self,
        state: FlowState,
        references: References,
        output: FlowOutput,
        flows: Callable[[], Sequence[RunningFlow]],
        run: Callable[[RunningFlow, int, Sequence[Given]], list[Result]],
        stop_rejecting: Callable[[RunningFlow], None],
    ) -> None:
        """`run` runs changes of a partition through a flow; `stop_rejecting` stops one that rejects too many."""
        self._state, self._references, self._output, self._flows = state, references, output, flows
        self._run, self._stop_rejecting = run, stop_rejecting

    def remember(
        self,
        flow: RunningFlow,
        partition: int,
        given: Sequence[Given],
        results: Sequence[Result],
        sent: Sequence[Result],
    ) -> None:
        """Take note of the last change of each item, and what it was joined with; of none that the flow has left out."""
        joins, tables = self._state.joins(partition), flow.steps.tables
        taken = {result.given.offset for result in results}
        made = {result.given.offset: result for result in sent}
        for incoming in given:
            if tables and incoming.change.table not in tables:
                continue
            result = made.get(incoming.offset)
            if result is None and incoming.offset in taken:
                continue  # rejected, or it waits: readers have the one before
            joints: list[JoinedItem] = []
            # What its reference keeps out of all sinks now may be in one when that changes, where sinks are read as tables.
            known = result is not None and (result.messages or flow.follows_references)
            if result is not None and known and incoming.change.after is not None:
                joints = [JoinedItem(*found) for found in result.references]
            place = flow.joined_place(incoming.change.table, incoming.key)
            joins.put(place, joints, waiting_of(incoming))

    def with_doubts(self, flow: RunningFlow, partition: int, given: Sequence[Given]) -> list[Given]:
        """Mark changes of items that would be joined otherwise now than they were: they are not sent again yet."""
        joins, found = self._state.joins(partition), []
        for incoming in given:
            entry = joins.of(flow.joined_place(incoming.change.table, incoming.key))
            joints = () if entry is None else entry.joints
            unsure = any(digest(self._references.item(partition, table, key)) != known for table, key, known in joints)
            found.append(structs.replace(incoming, unsure=True) if unsure else incoming)
        return found

    def own_item_changed(self, partition: int, reference: Reference) -> None:
        """Send again what was joined with an item of a partitioned table: in each flow the items of the same key."""
        joins = self._state.joins(partition)
        found = [
            joins.joined(flow.joined_place(table, reference.key), reference)
            for flow in self._flows()
            if flow.re_emits
            for table in flow.settings.tables
        ]
        if entries := [entry for entry in found if entry is not None]:
            self.emit(partition, reference, entries)

    def emit(self, partition: int, reference: Reference, entries: Sequence[JoinEntry]) -> None:
        """Send the last changes of items again, joined with the reference as it is now, where they have not that already."""
        mark = (RE_EMITTED, reference.table.removeprefix(PARTITIONED).encode())
        held, joins = self._state.held(partition), self._state.joins(partition)
        last = {entry.last.offset: entry.last for entry in entries}
        has_it = JoinedItem(*reference, digest(self._references.item(partition, *reference)))
        for flow in self._flows():
            given = [
                # From the beginning of time: what is missing now is no longer waited for.
                structs.replace(given_of(entry.last, at=-math.inf), unsure=True)
                for entry in entries
                # What waits behind a rejected change is joined when it continues.
                if entry.flow == flow.settings.name
                and has_it not in entry.joints
                and held.head(FlowItem(entry.flow, entry.last.key or b"")) is None
            ]
            sent, rejected = [], 0
            for result in self._run(flow, partition, given) if flow.re_emits else ():
                if result.error is not None:
                    self._output.reject(flow.name, partition, result.given, result.error)
                    rejected += 1
                    continue
                result.messages = [
                    structs.replace(message, headers=[*message.headers, mark]) for message in result.messages
                ]
                sent.append(result)
                place = flow.joined_place(result.given.change.table, result.given.key)
                joins.put(place, [JoinedItem(*found) for found in result.references], last[result.given.offset])
            self._output.send(flow, partition, sent)
            if flow.limit.add(len(sent) + rejected, rejected):
                self._stop_rejecting(flow)
