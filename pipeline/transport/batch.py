"""A batch: the messages of one fetch from one partition, the unit in which agents work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import compress
from typing import Any, cast

import faust
from confluent_kafka import Message
from faust import Stream
from faust.types import AppT, StreamT
from faust.types import Message as FaustMessage

Headers = list[tuple[str, bytes]]
Record = dict[str, Any]
"""A record as librdkafka's binding takes many of them: `{"key": bytes | None, "value": bytes | None}`."""


class Batch:
    """Records of one partition, in order, none of them decoded. Offsets may have gaps: compaction, markers of transactions.

    A slice of it (`batch[10:20]`, `batch.where(mask)`) is a batch again, of the same records.
    """

    __slots__ = ("decoder", "error", "partition", "records", "topic")

    def __init__(
        self, topic: str, partition: int, records: Sequence[Message], decoder: Callable[[bytes], Any] | None = None
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.records = records
        self.decoder = decoder
        self.error: Exception | None = None
        """Why its one record cannot be processed: the agent that gets it has raised at it before (see `poison`)."""

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"<Batch {self.topic}[{self.partition}] {self.first_offset}..{self.last_offset}, {len(self)} records>"

    def __getitem__(self, part: slice) -> Batch:
        """Return the batch of a part of the records."""
        return Batch(self.topic, self.partition, self.records[part], self.decoder)

    def where(self, mask: Sequence[bool]) -> Batch:
        """Return the batch of the records whose place in the mask is true."""
        return Batch(self.topic, self.partition, list(compress(self.records, mask)), self.decoder)

    @property
    def first_offset(self) -> int:
        """Offset of the first record."""
        return cast("int", self.records[0].offset())

    @property
    def last_offset(self) -> int:
        """Offset of the last record. The batch's ack stands for all up to it."""
        return cast("int", self.records[-1].offset())

    def keys(self) -> list[bytes | None]:
        """Keys, in order."""
        return cast("list[bytes | None]", [record.key() for record in self.records])

    def values(self) -> list[bytes]:
        """Values, in order; a tombstone is b''."""
        return cast("list[bytes]", [record.value() or b"" for record in self.records])

    def copies(self) -> list[Record]:
        """Return keys and values as `produce_batch` takes them."""
        return [{"key": record.key(), "value": record.value()} for record in self.records]

    def offsets(self) -> list[int]:
        """Offsets, in order."""
        return cast("list[int]", [record.offset() for record in self.records])

    def timestamps(self) -> list[int]:
        """Return the times, in order, in milliseconds since the epoch."""
        return [record.timestamp()[1] for record in self.records]

    def headers(self) -> list[Headers]:
        """Headers, in order."""
        return cast("list[Headers]", [record.headers() or [] for record in self.records])

    def changes(self) -> Iterator[Any]:
        """Yield the values one by one, decoded as the topic's schema says; what the decoder raises comes through."""
        decode = self.decoder
        for value in self.values():
            yield value if decode is None else decode(value)


class BatchSchema(faust.Schema[Any, Any]):
    """Declares a topic batch-native: `app.topic(name, schema=BatchSchema())`. Its agents get batches, undecoded.

    `decoder` is what `Batch.changes` decodes a value with.
    """

    def __init__(self, decoder: Callable[[bytes], Any] | None = None) -> None:
        super().__init__()
        self.decoder = decoder

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
