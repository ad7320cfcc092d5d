"""The schemas of the layout `columns`: one a table, on the compacted topic <p>.lake-schemas, followed by every lake worker.

A schema only grows, and two that have grown apart are merged to the same whoever does it: so workers need not agree before
they write. A worker that knows more than the topic says publishes it with its next slice.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import msgspec
from confluent_kafka import Message

from pipeline.sinks.followed import Followed
from pipeline.sinks.layouts.columns import Kind, TableSchema
from pipeline.transport import Participant, Slice, Transport

_decode = msgspec.json.Decoder(dict[str, Kind]).decode


class Schemas(Participant):
    """The schemas that this worker writes with. `of` and `grow` may be called from any thread, once `read` has returned."""

    def __init__(self, transport: Transport, topic: str) -> None:
        self._transport, self._topic = transport, topic
        self._lock = threading.Lock()
        self._schemas: dict[str, TableSchema] = {}
        self._published: dict[str, TableSchema] = {}
        self._publishing: dict[str, TableSchema] = {}
        self._followed = Followed(transport, topic, self._apply)

    def of(self, table: str) -> TableSchema:
        """Return the schema of a table; one without columns where it has none."""
        return self._schemas.get(table) or TableSchema()

    def grow(self, table: str, schema: TableSchema) -> TableSchema:
        """Merge a schema into a table's; return what came of it."""
        with self._lock:
            merged = self._schemas[table] = self.of(table).merge(schema)
        return merged

    def read(self) -> None:
        """Return when the topic was read to its end once; blocks. Raises TransientError when the broker does not answer."""
        self._followed.read()

    def _apply(self, records: Sequence[Message]) -> None:
        for record in records:
            if record.key() and record.value():
                table, schema = bytes(record.key() or b"").decode(), TableSchema(_decode(record.value() or b""))
                self._published[table] = schema
                self.grow(table, schema)

    def due(self) -> bool:
        """Say whether the topic is to hear of something."""
        return any(schema.columns != self._told(table) for table, schema in list(self._schemas.items()))

    def _told(self, table: str) -> Mapping[str, Kind]:
        return self._published[table].columns if table in self._published else {}

    def finish(self, work: Slice) -> None:
        """Publish what has grown."""
        self._publishing = {
            table: schema for table, schema in list(self._schemas.items()) if schema.columns != self._told(table)
        }
        for table, schema in self._publishing.items():
            value = msgspec.json.encode(schema.columns)
            self._transport.transaction.produce(self._topic, table.encode(), value, 0)

    def committed(self, work: Slice) -> None:
        """Take note of what is known now."""
        self._published |= self._publishing
