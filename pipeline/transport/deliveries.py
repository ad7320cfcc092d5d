"""What is delivered to the agents: Faust's messages, made of what the backlog holds; and put back when a slice is aborted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

from faust.types import TP, ConsumerMessage

from pipeline.transport.backlog import Backlog
from pipeline.transport.batch import Batch, BatchSchema
from pipeline.transport.events import SingleMessage, message_of
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
        """Take the next message of a partition: a batch of so many records at most, or what a source has offered."""
        if is_virtual(tp.topic):
            (message,), _ = self._backlog.take(tp, 1, 0)
            message.generation_id = self.generation
            return cast("ConsumerMessage", message)
        most = 1 if tp in self._poison.suspects else min(BATCH, room, self._slow.most(tp))
        records, size = self._backlog.take(tp, most, BATCH_BYTES)
        batch = Batch(tp.topic, tp.partition, records, cast("BatchSchema", self._schema_of(tp.topic)).decoder)
        self._poison.mark(batch)
        last = records[-1]
        kind, timestamp = last.timestamp()
        offset, value = cast("int", last.offset()), cast("Any", batch)
        message = ConsumerMessage(
            tp.topic, tp.partition, offset, timestamp / 1000, kind, [], None, value, None, 0, size, tp
        )
        message.generation_id = self.generation
        self._measure()
        return message

    def take_events(self, tp: TP, most: int) -> list[SingleMessage]:
        """Take the next records of a partition, so many at most, as single events."""
        records, _ = self._backlog.take(tp, most, BATCH_BYTES)
        self._measure()
        return [message_of(tp, record, self.generation) for record in records]

    def is_single(self, tp: TP) -> bool:
        """Say whether the agents of a partition's topic take single events."""
        return not is_virtual(tp.topic) and self._schema_of(tp.topic) is None

    def _measure(self) -> None:
        if not self._backlog.has_room.is_set():
            self._backlog.measure()

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
