"""A reference table: the current items of a captured table, whole on every worker, to join with.

The transform agent that sees a change of the table writes the item to a compacted topic, in its slice; every worker
follows that topic into a RocksDB of its own. So a reference arrives a moment after its change was committed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from confluent_kafka import KafkaError, Message
from faust.types import TP

from models.attributes import typed_item
from pipeline.state.store import Store
from pipeline.transport import Follower, Participant, Slice, Transport
from pipeline.transport.fatal import stop_process
from pipeline.transport.logs import UNKNOWN, Log

if TYPE_CHECKING:
    from pipeline.transport.consumer import Consumer

log = logging.getLogger(__name__)
HOT, HOT_BYTES = 16_384, 1_024
"""Items that are kept in memory, and bytes of one at most: the store takes 2 to 4 us for one."""
REFERENCE_EVERY_S = 1.0
"""Seconds between two looks at whether all items must be read again."""


@dataclass(slots=True)
class _Written:
    item: bytes | None
    partition: int
    offset: int | None = None
    """Where it is in the topic; None until it was delivered."""


class ReferenceTable(Participant):
    """Items by reference key. Partitions of `gate` wait until the table has been read to its end once."""

    def __init__(
        self,
        transport: Transport,
        topic: str,
        gate: str,
        directory: Path,
        on_change: Callable[[Sequence[Message]], None] = lambda records: None,
    ) -> None:
        """`on_change` gets records once they are there, in the follower's thread."""
        self._on_change = on_change
        self.topic, self.gate = topic, gate
        self._transport, self._path = transport, directory / f"{topic}.db"
        self._store: Store | None = None
        self._follower: Follower | None = None
        self._log = UNKNOWN
        """The log that the topic is."""
        self._written: dict[bytes, _Written] = {}
        """Items of the slice under way."""
        self._ahead: dict[bytes, _Written] = {}
        """Items that were committed here and have not come back by the topic yet."""
        self._hot: dict[bytes, bytes] = {}
        """Items of the store, by key. Another dict after each write: what is read while one is under way goes with the old."""
        self._applied = self._seen = 0
        """Records applied, and how many there were at the last look."""
        self._looked_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, key: bytes) -> bytes | None:
        """Return the item of a reference key, what this slice has written included. In the transaction's thread."""
        if key in self._written:
            return self._written[key].item
        if (ahead := self._ahead.get(key)) is not None and not self._is_back(ahead):
            return ahead.item
        hot = self._hot
        if (item := hot.get(key)) is None and self._store is not None:
            item = self._store.get(key)
            if item is not None and len(item) <= HOT_BYTES:
                if len(hot) >= HOT:
                    hot.clear()
                hot[key] = item
        return item

    def version(self) -> object:
        """Return what is another when the items may be others; once a second at most, since all of them are read then."""
        now = time.monotonic()
        if now >= self._looked_at + REFERENCE_EVERY_S:
            self._looked_at, self._seen = now, self._applied
        return self._seen

    def rows(self) -> list[tuple[bytes, bytes]]:
        """Return all items that are committed, by their keys."""
        return [] if self._store is None else list(self._store.items())

    def put(self, key: bytes, item: bytes | None, partition: int) -> None:
        """Set or remove (None) an item, in the slice under way. In the transaction's thread."""
        written = self._written[key] = _Written(item, partition)

        def delivered(_error: KafkaError | None, message: Message) -> None:
            written.offset = message.offset()

        self._transport.transaction.produce(self.topic, key, item, partition, on_delivery=delivered)

    def committed(self, work: Slice) -> None:
        """Keep what was written until it comes back by the topic."""
        self._ahead |= self._written
        self._written.clear()
        self._ahead = {key: ahead for key, ahead in self._ahead.items() if not self._is_back(ahead)}

    def _is_back(self, written: _Written) -> bool:
        reached = {} if self._follower is None else self._follower.reached
        return written.offset is not None and reached.get(written.partition, 0) > written.offset

    def aborted(self, work: Slice) -> None:
        """Forget what the slice wrote."""
        self._written.clear()

    def assigned(self, partitions: frozenset[TP]) -> None:
        """Start to follow; hold the gate's partitions until the table is there."""
        gated = {tp for tp in partitions if tp.topic == self.gate}
        if not gated:
            return
        consumer: Consumer = self._transport.app.consumer  # type: ignore[assignment]  # Faust types it by its interface
        consumer.hold(gated, self.topic)
        task = asyncio.ensure_future(self._catch_up(consumer, gated))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            stop_process(f"the reference table {self.topic} cannot be read: {error}", hint=getattr(error, "hint", ""))

    async def _catch_up(self, consumer: Consumer, gated: set[TP]) -> None:
        count = await consumer.questions.partitions(self.topic)
        tps = [TP(self.topic, partition) for partition in range(count)]
        watermarks = await consumer.questions.watermarks(tps, isolation="read_uncommitted")
        if self._follower is None:
            self._log = (await consumer.questions.logs([self.topic])).get(self.topic, UNKNOWN)
            store, at = await asyncio.to_thread(self._open, {tp.partition: ends for tp, ends in watermarks.items()})
            self._store = store
            self._follower = Follower(
                self._transport.client_conf(), self.topic, self._apply, start_at=at, log_of=lambda _topic: self._log
            )
            self._follower.start()
        ends = {tp.partition: end for tp, (_, end) in watermarks.items()}
        await self._follower.wait_until(ends)
        consumer.release(gated, self.topic)

    def _open(self, watermarks: Mapping[int, tuple[int, int]]) -> tuple[Store, dict[int, int]]:
        """Open the store; return it with the offsets to read on from: one that is of another log is forgotten."""
        store = Store(self._path)
        at = {p: offset for p in watermarks if (offset := store.meta(f"offset-{p}")) is not None}
        is_other = not Log.parse(store.text("log")).may_be(self._log)
        if is_other or any(not watermarks[p][0] <= offset <= watermarks[p][1] for p, offset in at.items()):
            log.warning("The topic %s is not the one that %s was read from: it is read again", self.topic, self._path)
            store.clear()
            at = {}
        return store, at

    def _item(self, record: Message) -> bytes | None:
        """Return the item of a record, in typed JSON; None: it is gone."""
        return record.value()

    def _apply(self, records: Sequence[Message]) -> None:
        latest: dict[bytes, bytes | None] = {}
        offsets: dict[str, int] = {}
        for record in records:
            latest[record.key() or b""] = self._item(record)
            offsets[f"offset-{record.partition()}"] = cast("int", record.offset()) + 1
        if self._store is None:
            return
        puts = [(key, item) for key, item in latest.items() if item is not None]
        self._applied += len(records)
        gone = [key for key, item in latest.items() if item is None]
        self._store.write(puts, gone, log=str(self._log), **offsets)
        self._hot = {}
        self._on_change(records)


class ReferenceTopic(ReferenceTable):
    """A compacted topic of others as a reference table: its values are plain JSON objects."""

    def _item(self, record: Message) -> bytes | None:
        return reference_item(record)


def reference_item(record: Message) -> bytes | None:
    """Return the item of a record of plain JSON, in typed JSON; None: it is gone, or it is not an object."""
    value = record.value()
    if not value:
        return None
    try:
        return typed_item(value)
    except ValueError as error:
        log.warning(
            "%s[%s] offset %s is not a JSON object; treated as missing: %s",
            record.topic(),
            record.partition(),
            record.offset(),
            error,
        )
        return None
