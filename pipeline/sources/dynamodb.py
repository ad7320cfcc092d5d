"""DynamoDB Streams as a source: finds the shards, reads those that are this worker's, writes its positions.

Which worker reads which shard: the shards topic has partitions, the group spreads them, and a shard belongs to the
partition that its key hashes to. Positions are records of that topic, written in the transaction of the changes they
stand for, together with the topic's own offset under the group's membership: a zombie reader is fenced like any consumer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from confluent_kafka import Message
from faust.types import TP

from pipeline.errors import HeadwaterError, TransientError
from pipeline.settings import DynamoDBStream
from pipeline.sources.aws import ExpiredIteratorError, StreamsApi, TrimmedError, VanishedError
from pipeline.sources.records import Cut, cut
from pipeline.sources.shards import Lineage, Position, Shard
from pipeline.topics import FENCE_PARTITIONS
from pipeline.transport import Follower, Slice, Source, Transport
from pipeline.transport.fatal import stop_process
from pipeline.transport.producer import partition_of

if TYPE_CHECKING:
    from pipeline.transport.consumer import Consumer

log = logging.getLogger(__name__)
T = TypeVar("T")

CREDITS = 8
"""GetRecords answers (1 MB each at most) read and not committed, of one partition of the shards topic: bounds memory."""
SLOWEST = 10.0
"""Seconds of the longest pause after an error."""


class Place(msgspec.Struct, frozen=True):
    """A record of the shards topic: how far a shard has been read. Its key is `stream ARN/shard ID`."""

    table: str
    after: str | None
    finished: bool = False


@dataclass(frozen=True, slots=True)
class ShardOf:
    """A shard, and where its positions are kept."""

    table: str
    arn: str
    shard_id: str

    @property
    def key(self) -> bytes:
        """The key of its positions."""
        return f"{self.arn}/{self.shard_id}".encode()

    @property
    def partition(self) -> int:
        """The partition of the shards topic that decides who reads it."""
        return partition_of(self.key, FENCE_PARTITIONS)

    def __str__(self) -> str:
        return f"the shard {self.shard_id} of the table {self.table}"


@dataclass(frozen=True, slots=True)
class Gap:
    """Changes of a shard that are lost: those after a sequence number (None: from its beginning), and why."""

    cause: str
    after: str | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one GetRecords answer brought; it enters a transaction whole."""

    shard: ShardOf
    cut: Cut
    after: str | None
    finished: bool
    gap: Gap | None = None
    """Changes that are lost before this reading, if there are any."""


@dataclass(slots=True)
class _Listing:
    table: str
    shards: list[Shard] = field(default_factory=list)


class DynamoDBStreams(Source):
    """All configured tables. One table is the case of one."""

    def __init__(self, transport: Transport, settings: DynamoDBStream, topic: str, fence: str, gaps: str) -> None:
        self.topic, self.fence, self.gaps = topic, fence, gaps
        self._transport, self._settings = transport, settings
        self._api = StreamsApi(self._settings.region, self._settings.threads)
        self._pool = ThreadPoolExecutor(self._settings.threads, "dynamodb-stream")
        self._follower = Follower(transport.client_conf(), fence, self._apply)
        self._places: dict[bytes, Place] = {}
        self._listings: dict[str, _Listing] = {}
        self._claims: dict[int, object] = {}
        """One object an assignment: what was found out under an earlier one does not count for this one."""
        self._ready: set[int] = set()
        self._readers: dict[ShardOf, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._discovery: asyncio.Task[None] | None = None
        self._look_now = asyncio.Event()
        self._asked: set[str] = set()
        self._purses: dict[int, asyncio.Semaphore] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def preflight(self) -> None:
        """Look at every table; raise the error that says what is wrong with the first that cannot be captured."""
        for table in self._settings.tables:
            self._api.stream_of(table)

    @property
    def reading(self) -> int:
        """The number of shards that this worker reads now."""
        return sum(1 for task in self._readers.values() if not task.done())

    # -- following the slices -----------------------------------------------------------------------------------------

    def assigned(self, partitions: frozenset[TP]) -> None:
        """Take over the shards of these partitions, once the positions of their former reader are decided."""
        claims = {tp.partition for tp in partitions if tp.topic == self.fence}
        if not claims:
            return
        if self._discovery is None:
            self._loop = asyncio.get_running_loop()
            self._follower.start()
            self._discovery = self._keep(asyncio.create_task(self._discover()))
        claim = object()
        self._claims |= dict.fromkeys(claims, claim)
        # A new purse for each assignment: the credits of what was dropped at the last revocation went with the old one.
        self._purses |= {partition: asyncio.Semaphore(CREDITS) for partition in claims}
        self._keep(asyncio.create_task(self._claim(claims, claim)))

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Stop to read; what was read and not committed is dropped."""
        gone = {tp.partition for tp in partitions if tp.topic == self.fence}
        self._ready -= gone
        for partition in gone:
            self._claims.pop(partition, None)
        for shard in [shard for shard in self._readers if shard.partition in gone]:
            self._readers.pop(shard).cancel()

    def finish(self, work: Slice) -> None:
        """Write the new positions, and the gaps; add the fence."""
        last: dict[ShardOf, Reading] = {}
        produce = self._transport.transaction.produce
        for message in work.of(self.topic):
            reading: Reading = message.value  # type: ignore[assignment]  # Faust types a value as bytes
            last[reading.shard] = reading
            if reading.gap is not None:
                produce(self.gaps, reading.shard.table.encode(), _gap(reading.shard, reading.gap))
        for shard, reading in last.items():
            place = Place(shard.table, reading.after, reading.finished)
            produce(self.fence, shard.key, msgspec.json.encode(place), shard.partition)
        for partition in {shard.partition for shard in last}:
            work.offsets[TP(self.fence, partition)] = self._follower.reached.get(partition, 0)

    def committed(self, work: Slice) -> None:
        """Give the credits back."""
        for message in work.of(self.topic):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._purses[message.partition].release)

    # -- what is known ------------------------------------------------------------------------------------------------

    def _apply(self, records: list[Message]) -> None:
        finished = False
        for record in records:
            key, value = cast("bytes", record.key()), record.value()
            if value is None:
                self._places.pop(key, None)
            else:
                place = self._places[key] = msgspec.json.decode(value, type=Place)
                finished |= place.finished
        if finished and self._loop is not None:
            self._loop.call_soon_threadsafe(self._start_readers)

    async def _claim(self, partitions: set[int], claim: object) -> None:
        consumer: Consumer = self._transport.app.consumer  # type: ignore[assignment]  # Faust types it by its interface
        # Whoever read these shards before can commit what is in the log by now, and nothing after: so long we wait.
        ends = dict(
            zip(
                partitions,
                await asyncio.gather(*(consumer.questions.end(TP(self.fence, p)) for p in partitions)),
                strict=True,
            )
        )
        await self._follower.wait_until(ends)
        self._ready |= {partition for partition in partitions if self._claims.get(partition) is claim}
        self._start_readers()

    async def _discover(self) -> None:
        failing: dict[str, str] = {}
        while True:
            self._look_now.clear()
            for table in self._settings.tables:
                try:
                    await self._list_table(table)
                except HeadwaterError as error:
                    # Said once, not every time: the others go on, the table may come, the credentials be renewed.
                    if failing.get(table) != error.message:
                        log.error("Discovery: %s", error)
                    failing[table] = error.message
                else:
                    failing.pop(table, None)
            self._start_readers()
            try:
                await asyncio.wait_for(self._look_now.wait(), self._settings.discovery_interval)
            except asyncio.TimeoutError:
                continue
            await asyncio.sleep(min(1.0, self._settings.discovery_interval))  # children appear late: ask with a pause

    async def _list_table(self, table: str) -> None:
        stream = await self._call(self._api.stream_of, table)
        arns = {stream.arn} | {arn for arn, listing in self._listings.items() if listing.table == table}
        arns |= {key.decode().rpartition("/")[0] for key, place in list(self._places.items()) if place.table == table}
        for arn in sorted(arns):
            try:
                self._listings[arn] = _Listing(table, await self._call(self._api.shards_of, arn))
            except VanishedError:
                if arn == stream.arn:
                    raise
                self._listings.pop(arn, None)  # a stream that was disabled more than a day ago

    def _start_readers(self) -> None:
        for arn, listing in self._listings.items():
            lineage = Lineage(listing.shards, self._positions(arn))
            for shard_id in lineage.readable():
                shard = ShardOf(listing.table, arn, shard_id)
                if shard.partition in self._ready and shard not in self._readers:
                    place = self._places.get(shard.key)
                    self._readers[shard] = self._keep(
                        asyncio.create_task(self._read(shard, place.after if place else None))
                    )
            # Children are late in the listing: look again, once a shard; then at the usual interval.
            if new := set(lineage.awaiting_children()) - self._asked:
                self._asked |= new
                self._look_now.set()

    def _positions(self, arn: str) -> Mapping[str, Position]:
        places = [(key.decode().rpartition("/"), place) for key, place in list(self._places.items())]
        return {shard_id: Position(place.after, place.finished) for (of, _, shard_id), place in places if of == arn}

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, shard: ShardOf, after: str | None) -> None:
        """Read a shard from a position to its end; stays registered until its partition is revoked."""
        consumer: Consumer = self._transport.app.consumer  # type: ignore[assignment]  # Faust types it by its interface
        tp, purse = TP(self.topic, shard.partition), self._purses[shard.partition]
        iterator, errors, gap = None, 0, None
        while True:
            await purse.acquire()
            offered = False
            try:
                if iterator is None:
                    iterator = await self._call(self._api.iterator, shard.arn, shard.shard_id, after)
                found = await self._call(self._fetch, iterator, shard)
                iterator, errors = found.next_iterator, 0
                reading = Reading(shard, found, found.last or after, iterator is None, gap)
                if found.records or found.unreadable or reading.finished or gap:
                    offered, after, gap = consumer.offer(tp, reading), reading.after, None
                if reading.finished:  # also when this last answer has records: an answer can carry both
                    return
                pause = 0.0 if offered else self._settings.poll_interval
            except ExpiredIteratorError:
                iterator, pause = None, 0.0
            except TrimmedError as error:
                log.error("%s: a gap is written down", error)
                iterator, gap, after, pause = None, Gap("trimmed", after), None, self._settings.poll_interval
            except VanishedError as error:
                log.error("%s: a gap is written down", error)
                offered = consumer.offer(
                    tp, Reading(shard, Cut([], [], None, None), after, True, Gap("vanished", after))
                )
                return
            except HeadwaterError as error:  # a throttle, expired credentials, anything: the shard must be read on
                errors += 1
                if errors == 3 or (
                    not isinstance(error, TransientError) and errors == 1
                ):  # one throttle is daily bread
                    log.warning("Still trying: %s", error)
                pause = min(SLOWEST, 0.1 * 2**errors) * random.uniform(0.5, 1)  # noqa: S311 - jitter
            finally:
                if not offered:
                    purse.release()
            if pause:
                await asyncio.sleep(pause)

    def _fetch(self, iterator: str, shard: ShardOf) -> Cut:
        body = self._api.records(iterator, str(shard))
        try:
            return cut(body, shard.arn)
        except msgspec.DecodeError as error:
            raise TransientError(f"{shard}: the answer of GetRecords cannot be read: {error}") from error

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("Unexpected, in the source:", exc_info=error)
            stop_process(f"the source {self.topic} failed: {error!r}")  # a shard would stand still in silence


def _gap(shard: ShardOf, gap: Gap) -> bytes:
    return msgspec.json.encode(
        {"table": shard.table, "stream": shard.arn, "shard": shard.shard_id, "after": gap.after, "cause": gap.cause}
    )
