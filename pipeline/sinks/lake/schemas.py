"""The schemas of the layout `columns`: one a table, on the compacted topic <p>.lake-schemas, followed by every lake worker.

A column is decided once, before anybody writes it: by whoever is the topic's only writer at that moment. The writer's
transactional ID fences off the one before it, so what is read after `init_transactions` is all that was ever decided, and
the commit fails if another writer came meanwhile. So every worker has the same column for an attribute at any moment,
and of names that differ in case alone the same one has the column everywhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import msgspec
from confluent_kafka import KafkaException, Message

from pipeline.errors import TransientError
from pipeline.sinks.lake.followed import Followed
from pipeline.sinks.lake.layouts.columns import Kind, TableSchema
from pipeline.transport import Transport, clients

log = logging.getLogger(__name__)
SCHEMAS_TIMEOUT_S = 10.0
"""Seconds that Kafka may take for one thing, and seconds after which a decision is tried again later."""
_decode = msgspec.json.Decoder(dict[str, Kind]).decode


class Schemas:
    """The schemas that all workers write with. To be used from any thread, once `read` has returned."""

    def __init__(self, transport: Transport, topic: str) -> None:
        self._transport, self._topic = transport, topic
        self._lock = threading.Lock()
        self._schemas: dict[str, TableSchema] = {}
        self._followed = Followed(transport, topic, self._apply)

    def of(self, table: str) -> TableSchema:
        """Return the schema of a table; one without columns where it has none."""
        return self._schemas.get(table) or TableSchema()

    def grow(self, table: str, schema: TableSchema) -> TableSchema:
        """Have new columns decided on; return the table's schema then. Raises TransientError when Kafka does not answer."""
        deadline = time.monotonic() + SCHEMAS_TIMEOUT_S
        with self._lock:
            while (known := self.of(table)).merge(schema) is not known:
                try:
                    self._decide(table, schema)
                except KafkaException as error:  # perhaps another worker was faster
                    log.info("the schema of %s is decided again: %s", table, error.args[0].str())
                    if time.monotonic() > deadline:
                        why = f"the topic {self._topic}: {error.args[0].str()}"
                        raise TransientError(why, hint="headwater check") from error
        return self.of(table)

    def _decide(self, table: str, schema: TableSchema) -> None:
        """Put what is new into the topic, as its only writer, and wait until it is known here."""
        conf = {**self._transport.client_conf(), "transaction.timeout.ms": int(SCHEMAS_TIMEOUT_S * 1000)}
        producer = clients.transactional(conf, f"{self._topic}.writer", SCHEMAS_TIMEOUT_S)
        self._followed.catch_up()
        known = self.of(table)
        merged = known.merge(schema)
        if merged is not known:
            producer.begin_transaction()
            producer.produce(self._topic, msgspec.json.encode(merged.columns), table.encode(), 0)
            producer.commit_transaction(SCHEMAS_TIMEOUT_S)
            self._followed.catch_up()

    def read(self) -> None:
        """Return when the topic was read to its end once; blocks. Raises TransientError when the broker does not answer."""
        self._followed.read()

    def _apply(self, records: Sequence[Message]) -> None:
        for record in records:
            if record.key() and record.value():
                columns = _decode(record.value() or b"")
                self._schemas[bytes(record.key() or b"").decode()] = TableSchema(columns)
