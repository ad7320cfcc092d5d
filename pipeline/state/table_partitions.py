"""The partitions of a table on this worker: one RocksDB each, written after the commit, whole slices at a time.

What a slice writes waits in memory, where reads find it at once. When its transaction is committed, it goes to RocksDB in
one batch, with the changelog's position; when it is aborted, it is dropped. So RocksDB is never ahead of Kafka.

The last record that a slice writes to the changelog says in a header up to which offsets the table knows its sources (the last
record of a topic is never compacted away). A group whose offsets are older, or gone, would work on those records again, and
count them twice: it is refused.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
from confluent_kafka import KafkaError, Message
from faust.types import TP

from pipeline.errors import FatalError, HeadwaterError
from pipeline.state import changelog
from pipeline.state.store import META, Store
from pipeline.transport import Participant, Slice, Transport
from pipeline.transport.fatal import stop_process
from pipeline.transport.logs import UNKNOWN, Log

if TYPE_CHECKING:
    from pipeline.transport.consumer import Consumer

log = logging.getLogger(__name__)
Writes = dict[bytes, bytes | None]
"""New values by key; None for a key that is deleted."""


POSITIONS = META + b"positions"
"""Where the store keeps the offsets of the sources."""
SAID = b"said/"
"""What a table writes that has nothing else to write, so that a record has the header."""
HEADER = "headwater.positions"
"""The header of a changelog record that has them."""


class SourcePosition(msgspec.Struct, array_like=True, frozen=True):
    """The offset up to which a table knows a partition of a source."""

    topic: str
    partition: int
    offset: int
    log: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[SourcePosition]).decode


class TablePartition:
    """A partition of a table: its RocksDB, and in memory what is not committed.

    Reads and writes may come from any thread at any time; `freeze`, `committed` and `aborted` come from one.
    """

    def __init__(self, path: Path, changelog_log: Log = UNKNOWN) -> None:
        """`changelog_log` is the log that the changelog is now."""
        self._store, self._log = Store(path), changelog_log
        self._lock = threading.Lock()
        self._open: Writes = {}
        """Written, and not in a transaction yet."""
        self._frozen: Writes | None = None
        """In the transaction that is being committed."""
        self.reached = self._store.meta("changelog") or 0
        """The changelog's offset up to which the store holds it."""
        self.log = Log.parse(self._store.text("log"))
        """The log that this offset is of; `UNKNOWN` in a state of an earlier version."""

    @property
    def positions(self) -> list[SourcePosition]:
        """Up to where the table knows its sources, as far as is known: not in a state of an earlier version."""
        found = self._store.get(POSITIONS)
        return [] if found is None else _decode(found)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values, None where there is none; one look into RocksDB for all."""
        written = self._written()
        sought = [key for key in keys if key not in written]
        if not sought:
            return [written[key] for key in keys]
        found = dict(zip(sought, self._store.get_many(sought), strict=True))
        return [written[key] if key in written else found[key] for key in keys]

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, None where there is none."""
        written = self._written()
        return written[key] if key in written else self._store.get(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all keys and values, what is not committed included."""
        written = dict(self._written())
        yield from ((key, value) for key, value in written.items() if value is not None and key != POSITIONS)
        yield from ((key, value) for key, value in self._store.items() if key not in written)

    def keys(self, prefix: bytes, start: bytes) -> Iterator[bytes]:
        """Yield the committed keys with this prefix from a key on, in order, the slice's own writes left out."""
        written = self._written()
        return (key for key in self._store.keys(prefix, start) if key not in written)

    def written(self, prefix: bytes) -> list[bytes]:
        """Return the keys with this prefix that have values and are not committed."""
        return [key for key, value in self._written().items() if value is not None and key.startswith(prefix)]

    def __iter__(self) -> Iterator[bytes]:
        return (key for key, _ in self.items())

    def _written(self) -> Writes:
        # What is open becomes frozen and what is frozen goes to RocksDB: looked at in this order, nothing is missed.
        opened, frozen = self._open, self._frozen
        return {**frozen, **opened} if frozen else opened

    def write(self, writes: Writes) -> None:
        """Write into the slice under way."""
        with self._lock:
            self._open.update(writes)

    @property
    def dirty(self) -> bool:
        """Whether something waits for a transaction."""
        return bool(self._open)

    def freeze(self) -> Writes:
        """Return what the transaction holds; what is written from now on belongs to the next one."""
        with self._lock:
            self._frozen, self._open = self._open, {}
        return self._frozen

    def committed(self, reached: int) -> None:
        """Take over what was frozen, with the changelog's position after it."""
        if self._frozen:
            self.apply(self._frozen, reached)
        self._frozen = None

    def aborted(self) -> None:
        """Forget what the slice wrote."""
        with self._lock:
            if self._frozen is None:
                self._open = {}
            self._frozen = None

    def apply(self, writes: Writes, reached: int) -> None:
        """Write to RocksDB, in one batch, with the changelog's position."""
        self.reached = max(self.reached, reached)
        self._store.write(
            ((key, value) for key, value in writes.items() if value is not None),
            (key for key, value in writes.items() if value is None),
            changelog=self.reached,
            log=str(self._log),
        )

    def forget(self) -> None:
        """Forget what is not committed."""
        with self._lock:
            self._open, self._frozen = {}, None

    def close(self) -> None:
        """Close RocksDB. What is not committed is forgotten."""
        self._store.close()


class Partitions(Participant):
    """The partitions of a table on this worker: recovered when they come, written when slices are committed.

    The changelog is the fence: its partitions are assigned with the topics that the table is worked on with, and the
    group never reads it. A slice that writes to a partition carries an offset of its changelog, so a worker that has
    lost the partition cannot commit, and a recovery knows of transactions that are not decided.
    """

    def __init__(
        self,
        transport: Transport,
        changelog_topic: str,
        directory: Path,
        name: str,
        *,
        sends: bool,
        on_recovered: Callable[[int, TablePartition], None],
        works_on: str | None = None,
        is_by_key: bool = False,
        expires: Callable[[], bool] = lambda: False,
    ) -> None:
        """`works_on` is the one topic whose agents use the table; None: any may.

        `is_by_key`: the key decides on the partition, not the event, so all of the table must be there before any event.
        `expires`: whether Kafka deletes old records of the changelog, because the table is of windows that expire.

        With it the changelog says from the first slice on which log that topic is, whether the table is written or not.
        """
        self.fence = changelog_topic
        self.positions_of = (changelog_topic,)
        self._works_on = works_on
        self._is_by_key, self._expires = is_by_key, expires
        self.all: dict[int, TablePartition] = {}
        self._transport, self._directory, self._name = transport, directory, name
        self._on_recovered = on_recovered
        self._sends = sends
        """Whether the changelog is written here, a record a key and slice; else Faust does, a record a write."""
        self._said: set[int] = set()
        """Partitions whose changelog says since the assignment which log the source is."""
        self._sent: dict[int, int] = {}
        """The changelog's offset after what this worker has sent."""
        self._parked: dict[int, TablePartition] = {}
        """Revoked, and kept open until the assignment that follows: most partitions come back in it."""
        self._claims: dict[int, object] = {}
        """One object an assignment: a recovery that began under an earlier one must not be taken for this one's."""
        self._locks: dict[int, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def path(self, partition: int) -> Path:
        """Return where a partition is."""
        return self._directory / f"{self._name}-{partition}.db"

    def sent(self, partition: int, offset: int) -> None:
        """Take note of a changelog record that the broker has."""
        self._sent[partition] = max(self._sent.get(partition, 0), offset + 1)

    async def recovered(self) -> None:
        """Wait until no recovery is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # -- following the slices -----------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Say whether something was written outside of a slice."""
        return any(partition.dirty for partition in self.all.values())

    def finish(self, work: Slice) -> None:
        """Write the changelog: the last value of each key that the slice has written."""
        for number, partition in self.all.items():
            if self._works_on is not None and number not in self._said and TP(self._works_on, number) in work.offsets:
                partition.write({SAID: b"1"})
            writes = partition.freeze()
            if not writes:
                continue
            positions = self._positions(work, number, is_known=writes.keys() != {SAID})
            work.offsets[TP(self.fence, number)] = partition.reached
            headers, transaction = [(HEADER, positions)], self._transport.transaction
            *most, (last, value) = writes.items()
            if self._sends:  # else Faust has written all of them, and the last one is written again
                transaction.produce_batch(self.fence, [{"key": key, "value": value} for key, value in most], number)
            transaction.produce(self.fence, last, value, number, headers, on_delivery=self._delivered)
            writes[POSITIONS] = positions

    def _positions(self, work: Slice, number: int, *, is_known: bool) -> bytes:
        """Return up to where the table knows its sources after the slice: of the same number, or all where none has it.

        Where nothing is known yet, the log alone is said, with the offset 0: the group may go back.
        """
        fences = {participant.fence for participant in self._transport.participants}
        read = {
            tp: offset
            for tp, offset in work.offsets.items()
            if tp.topic not in fences and self._works_on in {None, tp.topic}
        }
        same = {tp: offset for tp, offset in read.items() if tp.partition == number} or read
        kept = {(position.topic, position.partition): position for position in self.all[number].positions}
        for tp, offset in same.items():
            log, before = str(self._transport.log_of(tp.topic)), kept.get((tp.topic, tp.partition))
            known = offset if is_known else before.offset if before is not None and before.log == log else 0
            kept[tp.topic, tp.partition] = SourcePosition(*tp, known, log)
        return encode_positions(kept.values())

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.sent(cast("int", message.partition()), cast("int", message.offset()))

    def committed(self, work: Slice) -> None:
        """Write what the slice wrote to RocksDB."""
        for number, partition in self.all.items():
            if TP(self.fence, number) in work.offsets:
                self._said.add(number)
            partition.committed(self._sent.get(number, 0))

    def aborted(self, work: Slice) -> None:
        """Forget what the slice wrote."""
        for partition in self.all.values():
            partition.aborted()

    # -- partitions come and go ---------------------------------------------------------------------------------------

    def assigned(self, partitions: frozenset[TP]) -> None:
        """Hold what works on the new partitions back and recover them; the others run meanwhile."""
        consumer = cast("Consumer", self._transport.app.consumer)
        for partition in self._parked.keys() - {tp.partition for tp in partitions if tp.topic == self.fence}:
            self._parked.pop(partition).close()
        for tp in partitions:
            if tp.topic == self.fence:
                held = {
                    other
                    for other in consumer.assignment()
                    if (self._is_by_key or other.partition == tp.partition) and self._works_on in {None, other.topic}
                }
                consumer.hold(held, self._holder(tp.partition))
                if self._is_by_key:  # also what comes while others are recovered
                    for number in self._claims.keys() - self.all.keys():
                        consumer.hold(held, self._holder(number))
                claim = self._claims[tp.partition] = object()
                task = asyncio.ensure_future(self._open(consumer, tp, claim, held))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _holder(self, number: int) -> str:
        return f"{self.fence}[{number}]" if self._is_by_key else self.fence

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Let go of what may belong to another worker now."""
        for tp in partitions:
            if tp.topic == self.fence:
                self._claims.pop(tp.partition, None)
                if self._is_by_key:
                    consumer = cast("Consumer", self._transport.app.consumer)
                    consumer.release(consumer.assignment(), self._holder(tp.partition))
                self._said.discard(tp.partition)
                self._sent.pop(tp.partition, None)
                partition = self.all.get(tp.partition)
                self.all = {number: other for number, other in self.all.items() if number != tp.partition}
                if partition is not None and self._transport.app.should_stop:
                    partition.close()
                elif partition is not None:
                    partition.forget()
                    self._parked[tp.partition] = partition

    async def _open(self, consumer: Consumer, tp: TP, claim: object, held: set[TP]) -> None:
        # One recovery of a partition at a time: RocksDB has one owner, and a partition may come back while it runs.
        async with self._locks.setdefault(tp.partition, asyncio.Lock()):
            if self._claims.get(tp.partition) is not claim:
                return
            try:
                partition = await self._recover(consumer, tp, claim)
            except HeadwaterError as error:
                stop_process(error.message, hint=error.hint)
            except Exception as error:  # noqa: BLE001 - the partition would be held forever
                stop_process(f"recovery of {tp.topic}[{tp.partition}] failed: {error!r}")
            if self._claims.get(tp.partition) is claim:
                self.all = {**self.all, tp.partition: partition}  # others walk through it
                self._on_recovered(tp.partition, partition)
                consumer.release(consumer.assignment() if self._is_by_key else held, self._holder(tp.partition))
            else:
                await asyncio.to_thread(partition.close)

    async def _recover(self, consumer: Consumer, tp: TP, claim: object) -> TablePartition:
        path, started = self.path(tp.partition), time.monotonic()
        now = self._transport.log_of(tp.topic)
        warm = self._parked.pop(tp.partition, None)
        partition = await asyncio.to_thread(TablePartition, path, now) if warm is None else warm
        # Every transaction with writes sends an offset of the changelog: this waits until the last one is decided.
        await consumer.questions.positions([tp])
        low, end = (await consumer.questions.watermarks([tp], isolation="read_uncommitted"))[tp]
        first = partition.reached
        if first > end or not partition.log.may_be(now):
            what = partition.log.difference(now) if first <= end else "the topic was recreated"
            raise FatalError(
                f"the state in {path} holds {tp.topic}[{tp.partition}] up to offset {first}, and that ends at {end}: {what}",
                hint=f"rm -r {path} to recover from the changelog as it is now",
            )
        if first < low and self._expires():
            first = low  # what is gone has expired
        if first < low:
            raise FatalError(
                f"the changelog {tp.topic}[{tp.partition}] begins at offset {low}, and the state in {path} needs it from "
                f"{first} on: something has deleted records of it, though it is to be compacted only",
                hint=f"kafka-configs.sh --describe --entity-type topics --entity-name {tp.topic}; docs/how-to/trouble.md",
            )

        def apply(records: list[Message]) -> bool:
            writes = {cast("bytes", record.key()): record.value() for record in records}
            if (positions := _told_by(records)) is not None:
                writes[POSITIONS] = positions
            partition.apply(writes, cast("int", records[-1].offset()) + 1)
            return self._claims.get(tp.partition) is claim

        if first < end:
            await asyncio.to_thread(changelog.read_changelog, self._transport.client_conf(), tp, first, end, apply)
        await self._require_known(consumer, tp, partition)
        log.info("Table %s[%d]: offset %d -> %d in %.2f s", *tp, first, end, time.monotonic() - started)
        return partition

    async def _require_known(self, consumer: Consumer, tp: TP, partition: TablePartition) -> None:
        """Raise FatalError where the group would work on records again that the table knows."""
        if not self._transport.exactly_once:  # a crash can leave the changelog ahead of the offsets
            return
        mine = {one.topic for one in consumer.assignment() if self._works_on in {None, one.topic}}
        told = [position for position in partition.positions if position.topic in mine and position.offset > 0]
        known = {TP(one.topic, one.partition): one for one in told}
        for source, there in (await consumer.questions.positions(list(known))).items():
            kept = known[source]
            kept_log = Log.parse(kept.log)
            if there.offset is not None and not there.log.may_be(kept_log):
                continue  # another log, which somebody has accepted
            if there.offset is not None and there.offset >= kept.offset:
                continue
            now = self._transport.log_of(source.topic)
            why = (
                kept_log.difference(now)
                if not kept_log.may_be(now)
                else "nothing there: Kafka has forgotten it, or the topic was recreated"
                if there.offset is None
                else f"offset {there.offset}"
            )
            raise FatalError(
                f"the table of {tp.topic}[{tp.partition}] knows {source.topic}[{source.partition}] up to offset {kept.offset}, "
                f"and the group {consumer.app.conf.id} has committed {why}: records would count twice",
                hint=f"kafka-consumer-groups.sh --group {consumer.app.conf.id} --topic {source.topic}:{source.partition} "
                f"--reset-offsets --to-offset {kept.offset} --execute; docs/how-to/trouble.md",
            )


def encode_positions(positions: Iterable[SourcePosition]) -> bytes:
    """Return positions as the header has them."""
    return _encode(list(positions))


def positions_in(record: Message) -> list[SourcePosition]:
    """Return up to where a table knew its sources, as a record of its changelog has it."""
    found = _told_by([record])
    return [] if found is None else _decode(found)


def _told_by(records: Sequence[Message]) -> bytes | None:
    """Return the offsets of the sources as the newest of some changelog records has them; None: none has any."""
    for record in reversed(records):
        for name, value in cast("list[tuple[str, bytes]]", record.headers() or []):
            if name == HEADER:
                return value
    return None
