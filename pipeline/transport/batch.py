"""A batch: the messages of one fetch from one partition, the unit in which agents work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import faust
from confluent_kafka import Message
from faust import Stream
from faust.types import AppT, StreamT
from faust.types import Message as FaustMessage


class Batch:
    """Records of one partition, in order. Keys and values are read from librdkafka only when they are asked for."""

    __slots__ = ("partition", "records", "topic")

    def __init__(self, topic: str, partition: int, records: Sequence[Message]) -> None:
        self.topic = topic
        self.partition = partition
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"<Batch {self.topic}[{self.partition}] {self.first_offset}..{self.last_offset}, {len(self)} records>"

    @property
    def first_offset(self) -> int:
        """Offset of the first record."""
        return cast("int", self.records[0].offset())

    @property
    def last_offset(self) -> int:
        """Offset of the last record."""
        return cast("int", self.records[-1].offset())

    @property
    def last_timestamp(self) -> float:
        """Time of the last record, in seconds since the epoch."""
        return float(self.records[-1].timestamp()[1] / 1000)

    def keys(self) -> list[bytes | None]:
        """Keys, in order."""
        return cast("list[bytes | None]", [record.key() for record in self.records])

    def values(self) -> list[bytes]:
        """Values, in order; a tombstone is b''."""
        return [cast("bytes", record.value()) or b"" for record in self.records]


class BatchSchema(faust.Schema[Any, Any]):
    """Declares a topic batch-native: `app.topic(name, schema=BatchSchema())`. Its agents get batches, undecoded."""

    def loads_key(self, app: AppT, message: FaustMessage, *, loads: Any = None, serializer: Any = None) -> Any:
        """Return nothing: a batch has many keys."""
        return None

    def loads_value(self, app: AppT, message: FaustMessage, *, loads: Any = None, serializer: Any = None) -> Any:
        """Return the batch, or what a source has offered, as it is."""
        return message.value


async def batches(stream: StreamT[Any]) -> AsyncIterator[Any]:
    """Yield what a batch-native topic delivers, each acked when the agent comes back for the next.

    An agent that raises never acks, so its slice can never commit (Faust's own iteration acks in `finally`).
    """
    unacked = cast("Stream[Any]", stream).noack()
    async for event in unacked.events():
        event.message.started = True
        yield event.value
        await unacked.ack(event)
