"""The `seen` table: which event IDs have passed. One RocksDB a partition, one changelog message a partition and slice.

The changelog message's key is the source offset after the slice and the log that it is of, its value the new IDs, packed. The
store takes them after the commit, so it is never ahead of Kafka; recovery reads the changelog until it has reached exactly the
committed offset of the committed log. IDs count whatever log they came by: only positions belong to one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from binascii import unhexlify
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
from confluent_kafka import KafkaError, Message
from faust.types import TP

from pipeline.errors import FatalError, HeadwaterError
from pipeline.state.buckets import Buckets, Turns, bucket_of
from pipeline.state.changelog import read_changelog
from pipeline.state.standby import Keeping, Standbys
from pipeline.transport import Participant, Slice, Transport
from pipeline.transport.committed import Committed
from pipeline.transport.fatal import stop_process
from pipeline.transport.logs import UNKNOWN, Log
from pipeline.transport.questions import Questions
from pipeline.transport.starts import accept_command

if TYPE_CHECKING:
    from pipeline.transport.consumer import Consumer

logger = logging.getLogger(__name__)
pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(dict[int, list[bytes]]).decode


RECENT = 400_000
"""IDs in memory, in all partitions of a worker, above which the largest is written to files (about 110 bytes each)."""
TAIL = 10_000
"""Changelog messages that a restart reads again at most for a partition whose memory has not been written."""


def compact_ids(event_ids: Sequence[str]) -> list[bytes]:
    """Return event IDs in a short form: AWS's 32 hex digits as 16 bytes, of any other the BLAKE2b digest in 17."""
    try:
        short = [unhexlify(event_id) for event_id in event_ids]
    except ValueError:
        return [_compact(event_id) for event_id in event_ids]
    # As strings they must be told apart, so "AB" is not "ab": what comes back must be what went in.
    if set(map(len, short)) <= {16} and b"".join(short).hex() == "".join(event_ids):
        return short
    return [_compact(event_id) for event_id in event_ids]


def _compact(event_id: str) -> bytes:
    if len(event_id) == 32:
        with suppress(ValueError):
            raw = unhexlify(event_id)
            if raw.hex() == event_id:
                return raw
    return blake2b(event_id.encode(errors="surrogatepass"), digest_size=17).digest()


@dataclass(slots=True)
class _Partition:
    store: Buckets
    upto: int
    """The source offset up to which the store knows the IDs; -1 for none."""
    changelog: int
    """Offset of the last changelog message in the store; -1 for none."""
    log: Log
    """The log that `upto` is of; `UNKNOWN` in a state of an earlier version."""
    changelog_log: Log
    """The log that `changelog` is of."""
    turns: Turns
    pending: dict[int, set[bytes]] = field(default_factory=dict)
    """New IDs of the slice under way, by bucket."""
    sent: Message | None = None

    def remember(self) -> None:
        """Take the pending IDs into the store, with the positions."""
        self.store.add(self.pending, **self.positions)
        self.pending.clear()

    @property
    def positions(self) -> dict[str, int | str]:
        """What the store keeps of itself."""
        return {
            "upto": self.upto,
            "changelog": self.changelog,
            "log": str(self.log),
            "changelog_log": str(self.changelog_log),
            "bucket": self.turns.number,
            "opened": int(self.turns.opened),
        }

    def move_to(self, upto: int, log: Log) -> None:
        """Take note of the source offset up to which the store knows the IDs."""
        self.upto, self.log = upto, log

    def is_at(self, upto: int, log: Log) -> bool:
        """Say whether the store knows the IDs up to exactly this offset of this log."""
        return self.upto == upto and self.log.may_be(log)

    def is_behind(self, upto: int, log: Log) -> bool:
        """Say whether it lacks some, as far as its own position tells."""
        return self.upto < upto or not self.log.may_be(log)


class SeenTable(Participant):
    """Knows the event IDs of the partitions of `topic` that this worker owns."""

    def __init__(
        self,
        transport: Transport,
        topic: str,
        changelog: str,
        directory: Path,
        window: float,
        clock: Callable[[], float] = time.monotonic,
        standby_replicas: int = 0,
        recent: int = RECENT,
    ) -> None:
        self.topic, self.changelog = topic, changelog
        self.positions_of = (topic, changelog)
        self.recent = recent
        self._window, self._clock = window, clock
        self._transport, self._directory = transport, directory
        self._partitions: dict[int, _Partition] = {}
        self._parked: dict[int, _Partition] = {}
        """Revoked, and kept open until the assignment that follows: most partitions come back in it."""
        self._claims: dict[int, object] = {}
        """One object an assignment: a recovery that began under an earlier one must not be taken for this one's."""
        self._locks: dict[int, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        keeping = Keeping(
            self._open_store, lambda part: part.changelog + 1, self._apply, lambda part: part.store.close()
        )
        self._standbys = (
            Standbys(transport, topic, changelog, standby_replicas, keeping) if standby_replicas > 0 else None
        )

    def add_new(self, partition: int, event_ids: Sequence[str]) -> list[bool]:
        """Remember the IDs of a batch; return for each whether it is new. In the transaction's thread.

        They are remembered for a window of the time in which the partition is worked on. An ID that is twice among
        them is new once.
        """
        part = self._partitions[partition]
        ids = compact_ids(event_ids)
        first = dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))
        unknown = part.store.unknown(first).difference(*part.pending.values())
        part.pending.setdefault(part.turns.now(), set()).update(unknown)
        news = [False] * len(ids)
        for one in unknown:
            news[first[one]] = True
        return news

    # -- following the slices -----------------------------------------------------------------------------------------

    def finish(self, work: Slice) -> None:
        """Write one changelog message a partition that the slice has read, also when it brought no new ID."""
        for tp, offset in work.offsets.items():
            if tp.topic != self.topic:
                continue
            part = self._partitions[tp.partition]

            def delivered(_error: KafkaError | None, message: Message, part: _Partition = part) -> None:
                part.sent = message

            self._transport.transaction.produce(
                self.changelog,
                offset.to_bytes(8, "big") + str(self._transport.log_of(self.topic)).encode(),
                pack(part.pending),
                tp.partition,
                on_delivery=delivered,
            )

    def committed(self, work: Slice) -> None:
        """Take the new IDs into the store, with the positions; write a partition to files when memory asks for it."""
        for tp, offset in work.offsets.items():
            if tp.topic != self.topic:
                continue
            part = self._partitions[tp.partition]
            changelog = part.sent.offset() if part.sent is not None else None
            if changelog is None:
                raise FatalError(f"the changelog message of {tp.topic}[{tp.partition}] was committed without an offset")
            part.move_to(offset, self._transport.log_of(self.topic))
            part.changelog, part.changelog_log, part.sent = changelog, self._transport.log_of(self.changelog), None
            part.remember()
        self._bound_memory()

    def _bound_memory(self) -> None:
        """Write one partition at most: the next slice waits meanwhile."""
        stores = [part.store for part in self._partitions.values()]
        largest = max(stores, key=len, default=None)
        if largest is not None and sum(map(len, stores)) > self.recent:
            largest.flush()
        elif (behind := next((store for store in stores if store.adds > TAIL), None)) is not None:
            behind.flush()

    def aborted(self, work: Slice) -> None:
        """Forget the IDs of the slice."""
        for part in self._partitions.values():
            part.pending.clear()
            part.sent = None

    # -- partitions come and go ---------------------------------------------------------------------------------------

    def assigned(self, partitions: frozenset[TP]) -> None:
        """Hold the new partitions back and recover them; the others run meanwhile."""
        new = {tp for tp in partitions if tp.topic == self.topic}
        for partition in self._parked.keys() - {tp.partition for tp in new}:
            self._parked.pop(partition).store.close()
        consumer: Consumer = self._transport.app.consumer  # type: ignore[assignment]  # Faust types it by its interface
        consumer.hold(new, self.changelog)
        for tp in new:
            claim = self._claims[tp.partition] = object()
            task = asyncio.ensure_future(self._open(consumer, tp, claim))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._standbys is not None:
            self._standbys.rebalanced(consumer, self._claims.keys)

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Let go of what may belong to another worker now."""
        for tp in partitions:
            if tp.topic == self.topic:
                self._claims.pop(tp.partition, None)
                part = self._partitions.pop(tp.partition, None)
                if part is not None and self._standbys is not None:
                    self._standbys.keep(tp.partition, part)
                elif part is not None and self._transport.app.should_stop:
                    part.store.close()
                elif part is not None:
                    self._parked[tp.partition] = part

    async def _open(self, consumer: Consumer, tp: TP, claim: object) -> None:
        # One recovery of a partition at a time: RocksDB has one owner, and a partition may come back while it runs.
        async with self._locks.setdefault(tp.partition, asyncio.Lock()):
            if self._claims.get(tp.partition) is not claim:
                return
            try:
                part = await self._take_up(tp.partition)
                await self._recover(consumer.questions, tp, part)
            except HeadwaterError as error:
                stop_process(error.message, hint=error.hint)
            except Exception as error:  # noqa: BLE001 - the partition would be held forever
                stop_process(f"recovery of {tp.topic}[{tp.partition}] failed: {error!r}")
            if self._claims.get(tp.partition) is claim:
                self._partitions[tp.partition] = part
                consumer.release({tp}, self.changelog)
            else:
                await asyncio.to_thread(part.store.close)

    async def _take_up(self, partition: int) -> _Partition:
        warm = self._parked.pop(partition, None)
        if warm is None and self._standbys is not None:
            warm = await self._standbys.release(partition)
        return await asyncio.to_thread(self._open_store, partition) if warm is None else warm

    def _open_store(self, partition: int) -> _Partition:
        store = Buckets(self._directory / f"{self.topic}-{partition}.db")
        newest = max([*store.buckets, _or(store.meta("bucket"), 0)])
        opened = _or(store.meta("opened"), 0) if newest == store.meta("bucket") else 0
        part = _Partition(
            store,
            _or(store.meta("upto"), -1),
            _or(store.meta("changelog"), -1),
            Log.parse(store.text("log")),
            Log.parse(store.text("changelog_log")),
            Turns(self._window, self._clock, newest or bucket_of(time.time(), self._window), opened),
        )
        if not part.changelog_log.may_be(self._transport.log_of(self.changelog)):  # it was recreated: all of it is new
            part.changelog, part.changelog_log = -1, self._transport.log_of(self.changelog)
        return part

    async def _recover(self, questions: Questions, tp: TP, part: _Partition) -> None:
        path, started, first = part.store.path, time.monotonic(), part.upto
        while True:
            # Stable: offsets that a former owner has sent and not yet committed are waited for.
            there = (await questions.positions([tp]))[tp]
            target, log = there.offset, there.log
            if target is None:
                if part.upto >= 0:
                    raise FatalError(
                        f"the state in {path} knows offsets up to {part.upto} of {tp.topic}[{tp.partition}], and the group "
                        f"has committed nothing there: {self._difference(part.log)}",
                        hint=accept_command(tp.topic),
                    )
                return
            if not part.is_at(target, log):
                changelog = TP(self.changelog, tp.partition)
                low, end = (await questions.watermarks([changelog], isolation="read_uncommitted"))[changelog]
                # What retention has taken is older than the window: its topic keeps half as much again.
                start = max(low, part.changelog + 1)
                await asyncio.to_thread(self._read_changelog, part, tp.partition, there, start, end)
                if part.is_behind(target, log) and low >= end:
                    part.move_to(target, log)  # retention has emptied the changelog: nothing in the window is left
            if part.is_at(target, log):
                part.log = log if log != UNKNOWN else part.log
                if part.store.loaded:
                    await asyncio.to_thread(part.store.flush)  # what was loaded is known from here on
                text = "Seen table of %s[%d]: offset %d -> %d in %.2f s"
                logger.info(text, *tp, first, target, time.monotonic() - started)
                return
            now = await questions.positions([tp])
            if not part.is_behind(target, log) and now[tp][:2] == there[:2]:
                raise FatalError(
                    f"the state in {path} is ahead of the group: it knows offset {part.upto} of {tp.topic}[{tp.partition}], "
                    f"committed is {target}; someone has reset the group's offsets",
                    hint=f"{accept_command(tp.topic)}; or rm -r {path} to recover from the changelog {self.changelog}",
                )
            if part.is_behind(target, log):
                raise FatalError(
                    f"the changelog {self.changelog}[{tp.partition}] ends at source offset {part.upto}, committed is {target}: "
                    f"event IDs are missing",
                    hint=accept_command(tp.topic),
                )

    def _difference(self, kept: Log) -> str:
        """Say why an offset that the state knows is not the group's any more."""
        now = self._transport.log_of(self.topic)
        if not kept.may_be(now):
            return kept.difference(now)
        return "Kafka has forgotten its offsets (offsets.retention.minutes), or the topic was recreated"

    def _read_changelog(self, part: _Partition, partition: int, target: Committed, start: int, end: int) -> None:
        """Apply the changelog up to its end, but for what is behind the last message up to the target.

        At least once, a slice that was given up has left that there: it is not part of the state.
        """
        beyond: list[Message] = []

        def apply(records: list[Message]) -> bool:
            known = [place for place, record in enumerate(records) if not _is_beyond(record, target)]
            upto = known[-1] + 1 if known else 0
            if upto:
                self._apply(part, [*beyond, *records[:upto]])
                beyond.clear()
            beyond.extend(records[upto:])
            return True

        tp = TP(self.changelog, partition)
        read_changelog(self._transport.client_conf(), tp, start, end, apply, most=500)

    def _apply(self, part: _Partition, records: Sequence[Any]) -> None:
        ids: dict[int, list[bytes]] = {}
        for record in records:
            for bucket, members in unpack(record.value()).items():
                ids.setdefault(bucket, []).extend(members)
        if len(part.store):  # kept from when it was owned here: its positions must not go ahead of what is in memory
            part.store.flush()
        part.move_to(source_offset(records[-1]), source_log(records[-1]))
        part.changelog, part.changelog_log = records[-1].offset(), self._transport.log_of(self.changelog)
        if (newest := max(ids, default=0)) > part.turns.number:
            part.turns = Turns(self._window, self._clock, newest)
        part.store.load(ids, **part.positions)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _is_beyond(record: Message, target: Committed) -> bool:
    """Say whether a changelog message stands for a source offset beyond the target, in the same log."""
    return source_offset(record) > (target.offset or 0) and source_log(record) == target.log


def source_offset(record: Message) -> int:
    """Return the offset of the source after the slice that a changelog message stands for."""
    return int.from_bytes(cast("bytes", record.key())[:8], "big")


def source_log(record: Message) -> Log:
    """Return the log that this offset is of."""
    return Log.parse(cast("bytes", record.key())[8:].decode())
