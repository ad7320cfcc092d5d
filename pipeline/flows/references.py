"""The reference tables of a worker's flows: followed, watched, and asked for items."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial

from confluent_kafka import Message

from models.change import Change
from pipeline.runtime.worker import Worker
from pipeline.settings.enrich import PARTITIONED, TOPIC, JoinSettings
from pipeline.settings.flows import FlowSettings
from pipeline.state.flow_state import FlowState, Reference
from pipeline.state.reference import ReferenceTable, ReferenceTopic
from pipeline.steps.enrich import Lookup, key_schema, reference_key
from pipeline.steps.flow import Given

log = logging.getLogger(__name__)


class References:
    """The reference tables of a worker's flows: those that are kept whole, and those of its partitions."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._state: FlowState | None = None
        self.whole: dict[str, ReferenceTable] = {}
        """Those that are kept whole."""
        self._watched_by: dict[str, bool] = {}
        """Global reference tables whose changes have changes sent again."""
        self.partition = 0
        """Of raw, whose changes go through the flows now: a join by own key finds the items of this one."""

    def begin(self, state: FlowState, flows: Iterable[FlowSettings]) -> None:
        """Take the flow state, and follow the tables of these flows."""
        self._state = state
        for flow in flows:
            for table in flow.references:
                self.follow(table)

    @property
    def _items(self) -> FlowState:
        assert self._state is not None  # noqa: S101 - `begin` comes first
        return self._state

    def watch(self, flows: Iterable[FlowSettings]) -> None:
        """Take note of the tables whose changes have changes sent again, from now on."""
        self._watched_by = {
            step.reference: True
            for flow in flows
            for step in flow.enrich
            if isinstance(step, JoinSettings) and step.re_emits and not step.is_partitioned
        }

    def finders(self, flows: Sequence[FlowSettings]) -> dict[str, Lookup]:
        """Return what finds an item, by reference."""
        tables = {table for flow in flows for table in flow.references}
        return {
            **{table: self.whole[table].get for table in tables},
            **{f"{PARTITIONED}{table}": partial(self._own_item, table) for flow in flows for table in flow.partitioned},
        }

    def key_schema(self, table: str) -> str:
        """Return the names of the key attributes of a partitioned table."""
        return self._items.items(self.partition).key_schema(table)

    def follow(self, table: str) -> bool:
        """Follow a reference table; return whether it is new."""
        if table in self.whole:
            return False
        topic = self._topic_of(table)
        kind = ReferenceTopic if table.startswith(TOPIC) else ReferenceTable
        self.whole[table] = kind(
            self._worker.transport,
            topic,
            self._worker.topics.raw,
            self._worker.settings.state_dir,
            on_change=partial(self._changed, table),
        )
        self._worker.transport.add_participant(self.whole[table])
        return True

    def _changed(self, table: str, records: Sequence[Message]) -> None:
        if table in self._watched_by:
            self._items.changed(table, records)

    def watched(self) -> dict[str, str]:
        """Return the topics of the reference tables whose changes have changes sent again, by table."""
        return {table: self._topic_of(table) for table in self._watched_by}

    def _topic_of(self, table: str) -> str:
        if table.startswith(TOPIC):
            return table.removeprefix(TOPIC)
        return self._worker.topics.reference(table)

    def _own_item(self, table: str, key: bytes) -> bytes | None:
        """Return an item of a partitioned table, for the change under way."""
        return self._items.items(self.partition).get(table, key)

    def item(self, partition: int, reference: str, key: bytes) -> bytes | None:
        """Return an item of a reference, as it is for a partition now; None as well where no flow joins it any more."""
        if reference.startswith(PARTITIONED):
            return self._items.items(partition).get(reference.removeprefix(PARTITIONED), key)
        table = self.whole.get(reference)
        return None if table is None else table.get(key)

    def put(self, partition: int, change: Change) -> None:
        """Put the item of a global reference table."""
        self.whole[change.table].put(reference_key(change), change.after, partition)

    def put_own(self, partition: int, given: Sequence[Given], partitioned: frozenset[str]) -> list[Reference]:
        """Put the items of partitioned tables that are among the changes of a piece; return which."""
        items, put = self._items.items(partition), []
        for incoming in given:
            change = incoming.change
            if change.table in partitioned and incoming.key is not None:
                items.put(change.table, incoming.key, change.after, key_schema(change))
                put.append(Reference(f"{PARTITIONED}{change.table}", incoming.key))
        return put
