"""What is delivered to the agents: Faust's messages, made of what the backlog holds; and put back when a slice is aborted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

from confluent_kafka import Message
from faust.types import TP, ConsumerMessage

from pipeline.transport.backlog import Backlog
from pipeline.transport.batch import Batch, BatchSchema
from pipeline.transport.participant import is_virtual
from pipeline.transport.poison import Poison
from pipeline.transport.slow import Slow

BATCH, BATCH_BYTES = 4_000, 4 << 20
"""Records, and bytes of their values, in a batch at most."""


def records_in(message: ConsumerMessage) -> int:
    """Return how many records a message stands for."""
    return len(batch) if isinstance(batch := cast("Any", message.value), Batch) else 1


class Deliveries:
    """Takes from the backlog. `schema_of` gives the schema of a batch-native topic, None for one of single events."""

    def __init__(
        self, backlog: Backlog, poison: Poison, slow: Slow, schema_of: Callable[[str], BatchSchema | None]
    ) -> None:
        self.generation = 0
        """That of the group, as Faust counts it."""
        self._backlog, self._poison, self._slow, self._schema_of = backlog, poison, slow, schema_of
        self._offered = 0

    def offer(self, tp: TP, value: Any) -> None:
        """Add what a source has read to the backlog."""
        self._offered += 1
        self._backlog.add(tp, [self._offering(tp, self._offered, value)], 0)

    def _offering(self, tp: TP, number: int, value: Any) -> ConsumerMessage:
        return ConsumerMessage(tp.topic, tp.partition, number, time.time(), 0, [], None, value, None, tp=tp)

    def take(self, tp: TP, room: int = BATCH) -> ConsumerMessage:
        """Take the next message of a partition, of so many records at most."""
        if is_virtual(tp.topic):
            (message,), _ = self._backlog.take(tp, 1, 0)
            message.generation_id = self.generation
            return cast("ConsumerMessage", message)
        schema = self._schema_of(tp.topic)
        if schema is None:
            (record,), _ = self._backlog.take(tp, 1, 0)
            message = self.to_message(tp, record)
        else:
            most = 1 if tp in self._poison.suspects else min(BATCH, room, self._slow.most(tp))
            records, size = self._backlog.take(tp, most, BATCH_BYTES)
            batch = Batch(tp.topic, tp.partition, records, schema.decoder)
            self._poison.mark(batch)
            message = self.to_message(tp, records[-1])
            message.key, message.value, message.headers = None, cast("Any", batch), []
            message.serialized_value_size = size
        if not self._backlog.has_room.is_set():
            self._backlog.measure()
        return message

    def to_message(self, tp: TP, record: Message) -> ConsumerMessage:
        """Return a record as a message of its own."""
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
            generation_id=self.generation,
        )
        cast("Any", message).origin = record
        return message

    def give_back(self, messages: Sequence[ConsumerMessage], assigned: Collection[TP]) -> None:
        """Put what was delivered in vain to the front of the backlog again, in its order; what is not ours any more goes."""
        for message in reversed(messages):
            if message.tp not in assigned:
                continue
            if is_virtual(message.topic):
                records: list[Any] = [self._offering(message.tp, message.offset, message.value)]
            elif isinstance(batch := cast("Any", message.value), Batch):
                records = list(batch.records)
            else:
                records = [cast("Any", message).origin]
            self._backlog.give_back(message.tp, records)
