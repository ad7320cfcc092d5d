"""Runs the flows over the batches of raw, as the transform agent: in the transaction's thread, if nothing else is said."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from confluent_kafka import Message
from msgspec import structs

from models.change import Change, decode
from models.dead_letter import FLOW, OFFSET, DeadLetter, Headers
from pipeline.errors import HeadwaterError, RejectedError
from pipeline.flows.compile import Means, compile_flow, re_emits, schema_registry
from pipeline.flows.lint import lint
from pipeline.flows.versions import FlowVersions
from pipeline.runtime.worker import Worker
from pipeline.services.keys import mask_key
from pipeline.settings.enrich import PARTITIONED, TOPIC, JoinSettings
from pipeline.settings.flows import FlowSettings
from pipeline.state.joined import Entry, Joined, Joint, Reference
from pipeline.state.parked import Head, Lot, Place, Waiting
from pipeline.state.reference import ReferenceTable, ReferenceTopic
from pipeline.steps.enrich import MissingReferenceError, digest, has_sort_key, key_schema, reference_key
from pipeline.steps.flow import Flow, Given, Result, pieces
from pipeline.steps.python import load
from pipeline.steps.secrecy import MaskKey, WrongKeyError, fingerprint_of, is_sealed, open_letter, seal_letter
from pipeline.transport import Batch
from pipeline.transport.consumer import Consumer

log = logging.getLogger(__name__)
STAGE = "transform"
RATIO_OF = 1_000
"""Changes over which the share of rejected ones is taken."""
AT_LEAST = 100
"""Changes before the share says anything."""
PIECE = 500
"""Changes that go through the flows at once: 1 to 3 us a change less than with batches of 4,000."""
RE_EMITTED = "re_emitted"
"""Header of what is sent again because a reference has changed: the reference's table."""
SKIP = "headwater.skip"
"""Header of a message on the retry topic: the change itself is given up, those behind it go on."""


class RejectLimit:
    """Whether a flow rejects more than its share of the last changes."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._seen = self._rejected = 0.0

    def add(self, seen: int, rejected: int) -> bool:
        """Count changes; return True when the flow must stop."""
        self._seen += seen
        self._rejected += rejected
        over = self._seen >= AT_LEAST and self._rejected > self._share * self._seen
        if self._seen > RATIO_OF:  # older ones count less and less
            self._seen, self._rejected = self._seen / 2, self._rejected / 2
        return over


@dataclass(frozen=True)
class RunningFlow:
    """A flow that runs."""

    settings: FlowSettings
    steps: Flow
    limit: RejectLimit
    parks: bool
    """Whether changes of it may wait."""
    re_emits: bool
    """Whether changes of it are sent again when a reference changes."""
    asks: bool
    """Whether it asks others for many changes at once: a database, a service, a function of the user."""
    key: MaskKey | None
    """Of its masks: its dead letters are sealed with it."""

    @property
    def is_strict(self) -> bool:
        """Whether the changes of an item wait behind a rejected one."""
        return self.settings.order == "strict"


class FlowRunner:
    """The flows of a worker, and what they need: reference tables, what is parked, the version that runs."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self.topics = worker, worker.topics
        self._references: dict[str, ReferenceTable] = {}
        """Those that are kept whole."""
        self._clock = time.monotonic
        """What waits for references are counted with: the steps of the flows have the same."""
        self._partition = 0
        """Of raw, whose changes go through the flows now: a join by own key finds the items of this one."""
        self._functions = load(worker.settings.modules)
        self._registry = schema_registry(worker.settings)
        self._keys: dict[str, MaskKey] = {}
        """Of all flows that have masked since this process began: what waited in one that is gone is sealed with it."""
        self._watched_by: dict[str, bool] = {}
        """Global reference tables whose changes have changes sent again."""
        self._topics_of: dict[str, str] = {}
        """The topics of sinks that are there."""
        self._known = {topic.name for topic in worker.topics.all()}
        transport, topics = worker.transport, worker.topics
        # It frees what waits before the reference tables and the others finish the slice.
        self.state = Joined(
            transport,
            topics.raw,
            topics.flow_state,
            worker.settings.state_dir,
            is_there=lambda partition, table, key: self._item(partition, table, key) is not None,
            release=self._release,
            watched=self._watched,
            emit=self._emit,
            is_ready=lambda: self.versions.are_there,
        )
        transport.join(self.state)
        for flow in worker.settings.flows:
            for table in flow.references:
                self._reference(table)
        own, client_id = worker.settings.flows, worker.app.conf.broker_client_id
        gate = topics.raw, topics.retry
        self.versions = FlowVersions(transport, topics.flows, gate, own, self._prepare, self._build, client_id)
        transport.join(self.versions)
        worker.standing.append(lambda: self.versions.stopped)

    # -- flows are built ----------------------------------------------------------------------------------------------

    def _prepare(self, flows: Sequence[FlowSettings]) -> None:
        """Follow the reference tables that are new; on the event loop."""
        for table in {table for flow in flows for table in flow.references}:
            if self._reference(table):
                consumer = cast("Consumer", self._worker.app.consumer)
                self._references[table].assigned(frozenset(consumer.assignment()))

    def _build(self, flows: Sequence[FlowSettings]) -> list[RunningFlow]:
        """Compile flows; in a thread of its own."""
        tables = {table for flow in flows for table in flow.references}
        self._watched_by = {
            step.reference: True
            for flow in flows
            for step in flow.enrich
            if isinstance(step, JoinSettings) and step.re_emits and not step.is_partitioned
        }
        means = Means(
            references={
                **{table: self._references[table].get for table in tables},
                **{
                    f"{PARTITIONED}{table}": partial(self._own_item, table)
                    for flow in flows
                    for table in flow.partitioned
                },
            },
            key_schema=lambda table: self.state.items(self._partition).key_schema(table),
            rows={table: self._references[table] for table in tables},
            functions=self._functions,
            topic=self.topics.sink,
            registry=self._registry,
        )
        keys = {flow.name: mask_key(flow.mask_key) for flow in flows if flow.mask_key is not None and flow.mask}
        self._keys |= keys
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

    def _reference(self, table: str) -> bool:
        """Follow a reference table; return whether it is new."""
        if table in self._references:
            return False
        topic = self._topic_of(table)
        kind = ReferenceTopic if table.startswith(TOPIC) else ReferenceTable
        self._references[table] = kind(
            self._worker.transport,
            topic,
            self.topics.raw,
            self._worker.settings.state_dir,
            on_change=partial(self._changed, table),
        )
        self._worker.transport.join(self._references[table])
        return True

    def _changed(self, table: str, records: Sequence[Message]) -> None:
        if table in self._watched_by:
            self.state.changed(table, records)

    def _watched(self) -> dict[str, str]:
        """Return the topics of the reference tables whose changes have changes sent again, by table."""
        return {table: self._topic_of(table) for table in self._watched_by}

    def _topic_of(self, table: str) -> str:
        if table.startswith(TOPIC):
            return table.removeprefix(TOPIC)
        return self.topics.reference(table)

    def _own_item(self, table: str, key: bytes) -> bytes | None:
        """Return an item of a partitioned table, for the change under way."""
        return self.state.items(self._partition).get(table, key)

    def _item(self, partition: int, reference: str, key: bytes) -> bytes | None:
        """Return an item of a reference, as it is for a partition now; None as well where no flow joins it any more."""
        if reference.startswith(PARTITIONED):
            return self.state.items(partition).get(reference.removeprefix(PARTITIONED), key)
        table = self._references.get(reference)
        return None if table is None else table.get(key)

    # -- batches come -------------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """Run the changes of a batch through every flow, in pieces: what is held no longer than needed stays in the cache."""
        if batch.topic == self.topics.retry:
            self._again(batch)
            return
        flows = self.versions.current
        partitioned = frozenset(table for flow in flows for table in flow.settings.partitioned)
        most = len(batch) if any(flow.asks for flow in flows) else PIECE
        for given in pieces(self._given(batch, partitioned), partitioned, most):
            changed = self._put_own_items(batch.partition, given, partitioned) if partitioned else ()
            for flow in flows:
                self._settle(flow, batch.partition, given, fresh=True)
            for reference in changed:
                self._own_item_changed(batch.partition, reference)
        metrics = self._worker.metrics
        metrics.count(metrics.changes, len(batch), STAGE)

    def _given(self, batch: Batch, partitioned: frozenset[str]) -> Iterator[Given]:
        """Yield the changes of a batch, and put the items of global reference tables."""
        references = self._references
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
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others go on
                self._worker.reject(batch, index, STAGE, error)
                continue
            yield Given(record.offset(), record.key(), value, change, now, record.headers() or ())

    def _put_item(self, partition: int, change: Change) -> None:
        """Put the item of a global reference table; a flow that joins one with a sort key stands: it would find nothing."""
        if has_sort_key(change):
            for flow in self.versions.current:
                if change.table in flow.settings.joined:
                    self._stand(
                        flow,
                        f"joins the table {change.table}, which has a sort key: a foreign key names none of its items",
                    )
        self._references[change.table].put(reference_key(change), change.after, partition)

    def _put_own_items(self, partition: int, given: Sequence[Given], partitioned: frozenset[str]) -> list[Reference]:
        """Put the items of partitioned tables that are among the changes of a piece; return which."""
        items, put = self.state.items(partition), []
        for one in given:
            change = one.change
            if change.table in partitioned and one.key is not None:
                items.put(change.table, one.key, change.after, key_schema(change))
                put.append(Reference(f"{PARTITIONED}{change.table}", one.key))
        return put

    def _settle(self, flow: RunningFlow, partition: int, given: Sequence[Given], *, fresh: bool) -> None:
        """Run changes of one partition through a flow, and write what it made of them, in their order; park what must wait."""
        sent, seen, parked, rejected = [], 0, 0, 0
        if _follows_references(flow):
            given = self._with_doubts(flow, partition, given)
        results = self._run(flow, partition, given)
        lot = self.state.lot(partition) if flow.parks else None
        for result in results:
            seen += 1
            if lot is not None and self._parks(flow, lot, result):
                parked += 1
            elif result.error is not None:
                rejected += 1
                self._reject(flow, partition, result.given, result)
            else:
                sent.append(result)
        self._send(flow, partition, sent)
        if flow.re_emits:
            self._remember(flow, partition, given, results, sent)
        metrics, name = self._worker.metrics, flow.settings.name
        for outcome, count in (("rejected", rejected), ("parked", parked), ("taken", len(sent))):
            metrics.count(metrics.flow_changes, count, name, outcome)
        if flow.limit.add(seen, rejected) and fresh:
            self._stand_rejecting(flow)

    def _run(self, flow: RunningFlow, partition: int, given: Sequence[Given]) -> list[Result]:
        """Run changes through a flow. What the broker has refused of a change makes it a rejected one of the flow."""
        self._partition, name = partition, flow.settings.name
        self._worker.transport.doing = f"the flow {name}"
        results = flow.steps.run(given)
        if refused := self._worker.transport.transaction.refused:
            for result in results:
                error = refused.of((name, partition, result.given.offset))
                if error is not None:
                    result.error, result.messages = error, []
        return results

    def _parks(self, flow: RunningFlow, lot: Lot, result: Result) -> bool:
        """Park a change that must wait: behind another of its item, or for a reference. Return whether it was."""
        given, error = result.given, result.error
        place = Place(flow.settings.name, given.key or b"")
        waits = lot.head(place) is not None
        if not waits and isinstance(error, MissingReferenceError) and error.until:
            wait = max(0.0, error.until - self._clock())
            lot.block(place, Head(*place, given.offset, (error.table, error.key), wait))
            waits = True
        if waits:
            lot.park(place, _waiting(given))
        elif error is not None and flow.is_strict:
            lot.block(place, Head(*place, given.offset))
        return waits

    def _send(self, flow: RunningFlow, partition: int, results: Iterable[Result]) -> None:
        """Write the messages of changes. An item stays in its partition; one whose key is masked goes where that belongs."""
        sunk: Tally[str] = Tally()
        records: list[tuple[str, bytes | None, bytes | None, int, Any]] = []
        origins: list[tuple[str, int, int]] = []
        name, transaction = flow.settings.name, self._worker.transport.transaction
        for result in results:
            given_key = result.given.key
            for one in result.messages:
                sink, key = one.sink, one.key
                origin = name, partition, result.given.offset
                try:
                    topic = self._topics_of.get(sink) or self._topic(flow, sink)
                except RejectedError as error:
                    transaction.refuse(origin, error)
                    continue
                records.append((topic, key, one.value, partition if key is given_key else -1, one.headers))
                origins.append(origin)
                sunk[sink] += 1
        transaction.produce_many(records, origins)
        for sink, count in sunk.items():
            if sink:
                self._worker.metrics.count(self._worker.metrics.sunk, count, sink)

    def _topic(self, flow: RunningFlow, sink: str) -> str:
        """Return the topic of a sink, or of what the flow publishes on its way (''); make it where it is not there."""
        topic = self.topics.sink(sink) if sink else self.topics.enriched(flow.settings.through or "")
        if topic not in self._known:
            self._worker.require_topic(topic)
            self._known.add(topic)
        if sink:
            self._topics_of[sink] = topic
        return topic

    def _reject(self, flow: RunningFlow, partition: int, given: Given, result: Result) -> None:
        self._reject_given(flow.settings.name, partition, given, cast("Exception", result.error))

    def _reject_given(self, flow: str, partition: int, given: Given, error: Exception) -> None:
        """Write a dead letter of a flow, sealed where it masks attributes."""
        headers = list(given.headers)
        letter = DeadLetter(
            self.topics.raw, partition, given.offset, STAGE, error, given.key, given.value, headers, flow
        )
        key = self._sealing_key(flow, given.change.table)
        self._worker.reject_letter(letter if key is None else seal_letter(key, letter))

    def _key(self, flow: str) -> MaskKey | None:
        """Return the key of a flow's masks; of one that is gone, what it was here."""
        running = self._flow(flow)
        return self._keys.get(flow) if running is None else running.key

    def _sealing_key(self, flow: str, table: str) -> MaskKey | None:
        """Return the key to seal a flow's letters with; of one that nobody knows any more, that of any that masks the table."""
        if self._flow(flow) is not None or flow in self._keys:
            return self._key(flow)
        masking = (one.key for one in self.versions.current if not one.steps.tables or table in one.steps.tables)
        return next(filter(None, masking), None)

    def _stand_rejecting(self, flow: RunningFlow) -> None:
        share = f"{flow.settings.reject_limit:.0%}"
        self._stand(flow, f"rejects more than {share} of its changes (reject_limit): see headwater dlq list")

    def _stand(self, flow: RunningFlow, why: str) -> None:
        """Give the slice up; nothing goes on from raw before other flows are applied."""
        reason = (
            f"the flow {flow.settings.name} {why}; it stands, and nothing goes on from raw: mend the flow, then "
            "headwater flows apply"
        )
        self._worker.transport.transaction.spoil(reason)
        loop: asyncio.AbstractEventLoop = self._worker.app.loop
        loop.call_soon_threadsafe(self.versions.stand, flow.settings.name, reason)

    # -- references change --------------------------------------------------------------------------------------------

    def _remember(
        self,
        flow: RunningFlow,
        partition: int,
        given: Sequence[Given],
        results: Sequence[Result],
        sent: Sequence[Result],
    ) -> None:
        """Take note of the last change of each item, and what it was joined with; of none that the flow has left out."""
        joins, tables = self.state.joins(partition), flow.steps.tables
        taken = {result.given.offset for result in results}
        made = {result.given.offset: result for result in sent}
        for one in given:
            if tables and one.change.table not in tables:
                continue
            result = made.get(one.offset)
            if result is None and one.offset in taken:
                continue  # rejected, or it waits: readers have the one before
            joints: list[Joint] = []
            # What its reference keeps out of all sinks now may be in one when that changes, where sinks are read as tables.
            known = result is not None and (result.messages or _follows_references(flow))
            if result is not None and known and one.change.after is not None:
                joints = [Joint(*found) for found in result.references]
            place = _joined_place(flow, one.change.table, one.key)
            joins.put(place, joints, _waiting(one))

    def _with_doubts(self, flow: RunningFlow, partition: int, given: Sequence[Given]) -> list[Given]:
        """Mark changes of items that would be joined otherwise now than they were: they are not sent again yet."""
        joins, found = self.state.joins(partition), []
        for one in given:
            entry = joins.of(_joined_place(flow, one.change.table, one.key))
            joints = () if entry is None else entry.joints
            unsure = any(digest(self._item(partition, table, key)) != known for table, key, known in joints)
            found.append(structs.replace(one, unsure=True) if unsure else one)
        return found

    def _own_item_changed(self, partition: int, reference: Reference) -> None:
        """Send again what was joined with an item of a partitioned table: in each flow the items of the same key."""
        joins = self.state.joins(partition)
        found = [
            joins.joined(_joined_place(flow, table, reference.key), reference)
            for flow in self.versions.current
            if flow.re_emits
            for table in flow.settings.tables
        ]
        if entries := [entry for entry in found if entry is not None]:
            self._emit(partition, reference, entries)

    def _emit(self, partition: int, reference: Reference, entries: Sequence[Entry]) -> None:
        """Send the last changes of items again, joined with the reference as it is now, where they have not that already."""
        mark = (RE_EMITTED, reference.table.removeprefix(PARTITIONED).encode())
        lot, joins = self.state.lot(partition), self.state.joins(partition)
        last = {one.last.offset: one.last for one in entries}
        has_it = Joint(*reference, digest(self._item(partition, *reference)))
        for flow in self.versions.current:
            given = [
                # From the beginning of time: what is missing now is waited for no more.
                structs.replace(_given(one.last, at=-math.inf), unsure=True)
                for one in entries
                # What waits behind a rejected change is joined when it goes on.
                if one.flow == flow.settings.name
                and has_it not in one.joints
                and lot.head(Place(one.flow, one.last.key or b"")) is None
            ]
            sent, rejected = [], 0
            for result in self._run(flow, partition, given) if flow.re_emits else ():
                if result.error is not None:
                    self._reject(flow, partition, result.given, result)
                    rejected += 1
                    continue
                result.messages = [structs.replace(one, headers=[*one.headers, mark]) for one in result.messages]
                sent.append(result)
                place = _joined_place(flow, result.given.change.table, result.given.key)
                joins.put(place, [Joint(*found) for found in result.references], last[result.given.offset])
            self._send(flow, partition, sent)
            if flow.limit.add(len(sent) + rejected, rejected):
                self._stand_rejecting(flow)

    # -- what has waited goes on --------------------------------------------------------------------------------------

    def _release(self, partition: int, place: Place) -> None:
        """Send what has waited for a reference."""
        self._go_on(partition, place, [], None)

    def _again(self, batch: Batch) -> None:
        """Try rejected changes again, or give them up, and let go on what waits behind them."""
        for index, record in enumerate(batch.records):
            headers = cast("Headers", record.headers() or [])
            said = {name: (value or b"").decode(errors="replace") for name, value in headers}
            try:
                offset, at = int(said[OFFSET]), self._clock()
            except (KeyError, ValueError) as error:  # somebody else writes here
                self._worker.reject(batch, index, STAGE, error)
                continue
            names = [said[FLOW]] if FLOW in said else [one.settings.name for one in self.versions.current]
            if SKIP in said:  # its value is not asked for: whoever skips it may have lost the key
                self._give_up(batch.partition, names, offset)
                continue
            own = [(name, value) for name, value in headers if name not in {FLOW, OFFSET}]
            sealed = record.value() or b""
            try:
                key, value = self._opened(said.get(FLOW, ""), record.key(), sealed)
                given = Given(offset, key, value, decode(value), at, own)
            except Exception as error:  # noqa: BLE001 - it is a dead letter again, of the same place
                place, flow = (self.topics.raw, batch.partition, offset), said.get(FLOW, "")
                self._worker.reject_letter(
                    DeadLetter(*place, STAGE, error, record.key(), sealed, own, flow, fingerprint_of(sealed))
                )
                continue
            for name in names:
                self._go_on(batch.partition, Place(name, key or b""), [given], offset)

    def _give_up(self, partition: int, flows: Iterable[str], offset: int) -> None:
        """Let go on what waits behind a change that is given up."""
        for flow in flows:
            if (place := self.state.lot(partition).behind(flow, offset)) is not None:
                self._go_on(partition, place, [], offset)

    def _opened(self, flow: str, key: bytes | None, value: bytes) -> tuple[bytes | None, bytes]:
        """Return key and value of a letter, as they were before it was sealed."""
        if not is_sealed(value):
            return key, value
        if (mask := self._key(flow)) is None:
            raise WrongKeyError("the letter is sealed, and its flow has no key")
        secret = open_letter(mask, value)
        return secret.key, secret.value or b""

    def _flow(self, name: str) -> RunningFlow | None:
        return next((one for one in self.versions.current if one.settings.name == name), None)

    def _go_on(self, partition: int, place: Place, first: list[Given], offset: int | None) -> None:
        """Do what has waited; `first` is a letter that is tried again, `offset` the place on raw of the one it is about."""
        flow, lot = self._flow(place.flow), self.state.lot(partition)
        head = lot.head(place)
        if head is not None and offset not in {None, head.offset}:
            # It is not this letter that the others wait for: it waits with them.
            for one in first:
                lot.park(place, _waiting(one))
            return
        waiting = lot.free(place)
        given = first + [_given(one, one.at) for one in waiting]
        if flow is None:
            gone = HeadwaterError(f"there is no flow {place.flow} any more")
            for one in given:
                self._reject_given(place.flow, partition, one, gone)
            return
        self._settle(flow, partition, given, fresh=False)


def _joined_place(flow: RunningFlow, table: str, key: bytes | None) -> Place:
    """Return where an item's last change is noted: by table, since items of several may have the same key."""
    return Place(flow.settings.name, table.encode() + b"/" + (key or b""))


def _follows_references(flow: RunningFlow) -> bool:
    """Say whether a reference whose changes send items again may bring them out of a sink that is read as a table."""
    leaving = flow.steps.leaving
    return flow.re_emits and leaving is not None and leaving.follows_references


def _waiting(given: Given) -> Waiting:
    return Waiting(given.offset, given.at, given.key, given.value, list(given.headers))


def _given(waiting: Waiting, at: float) -> Given:
    value = waiting.value
    return Given(waiting.offset, waiting.key, value, decode(value), at, cast("Headers", waiting.headers))
