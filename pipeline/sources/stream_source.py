"""Streams of shards as a source: finds the shards, reads those that are this worker's, writes its positions.

Which worker reads which shard: the shards topic has partitions, the group spreads them, and a shard belongs to the
partition that its key hashes to. Positions are records of that topic, written in the transaction of the changes they
stand for, together with the topic's own offset under the group's membership: a zombie reader is fenced like any consumer.

What AWS calls the streams and how it is asked is in `dynamodb` and `kinesis`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from confluent_kafka import Message
from faust.types import TP

from pipeline.metrics.worker_metrics import Metrics
from pipeline.sources.base import Pacing, Reading, ShardStart, StreamApi
from pipeline.sources.credit_pool import ALL_CREDITS, CreditPool
from pipeline.sources.discovery import Discovery, gap_of
from pipeline.sources.shard_positions import Beginning, KnownPositions, ShardOf, ShardPosition
from pipeline.sources.shard_reader import ShardReader
from pipeline.sources.shards import Lineage, ReadUpTo, ancestors
from pipeline.sources.snapshots.known import is_news, is_snapshot
from pipeline.sources.snapshots.snapshotter import Snapshotter
from pipeline.transport import Follower, Slice, Source, Transport
from pipeline.transport.fatal import stop_process

if TYPE_CHECKING:
    from pipeline.transport.consumer import Consumer

log = logging.getLogger(__name__)
T = TypeVar("T")

SILENT_S = 60.0
"""Seconds without an answer of AWS to anything after which a worker that reads shards is not ready."""
TRIMMED_S = 2 * 86_400.0
"""Seconds after which a finished shard that is not listed was trimmed for certain, and is not merely listed late."""


class StreamSource(Source):
    """All streams of one entry of the settings. One table is the case of one."""

    def __init__(
        self,
        transport: Transport,
        api: StreamApi,
        pacing: Pacing,
        metrics: Metrics,
        topic: str,
        fence: str,
        gaps: str,
        *,
        since: Callable[[], float | None] = lambda: None,
        start_after: Mapping[str, str] | None = None,
        snapshots: Snapshotter | None = None,
    ) -> None:
        self.topic, self.fence, self.gaps = topic, fence, gaps
        self._transport, self._api, self._pacing, self._metrics = transport, api, pacing, metrics
        self.snapshots = snapshots
        self._pool = ThreadPoolExecutor(pacing.threads, topic)
        self._follower = Follower(transport.client_conf(), fence, self._apply)
        self._known = KnownPositions({}, {})
        self._discovery = Discovery(self, api, pacing, self._known, since=since, start_after=start_after or {})
        self._listings = self._discovery.listings
        self._shard_reader = ShardReader(self, api, pacing)
        self._claims: dict[int, object] = {}
        """One object an assignment: what was found out under an earlier one does not count for this one."""
        self._ready: set[int] = set()
        self._readers: dict[ShardOf, asyncio.Task[None]] = {}
        self._forgotten: set[ShardOf] = set()
        """Shards whose places are to be dropped with the next slice."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._pools: dict[int, CreditPool] = {}
        self._credits = asyncio.Semaphore(ALL_CREDITS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard = time.monotonic()

    @property
    def reading(self) -> int:
        """The number of shards that this worker reads now."""
        return sum(1 for task in self._readers.values() if not task.done())

    def silent(self) -> str:
        """Return why nothing is heard of AWS though shards are read, or ''."""
        seconds = time.monotonic() - self._heard
        return f"AWS has not answered for {seconds:.0f} s" if self.reading and seconds > SILENT_S else ""

    # -- following the slices -----------------------------------------------------------------------------------------

    def assigned(self, partitions: frozenset[TP]) -> None:
        """Take over the shards of these partitions, once the positions of their former reader are decided."""
        claims = {tp.partition for tp in partitions if tp.topic == self.fence}
        if not claims:
            return
        if self._looking is None:
            self._loop = asyncio.get_running_loop()
            self._follower.start()
            self._looking = self.in_background(asyncio.create_task(self._discovery.run()))
        claim = object()
        self._claims |= dict.fromkeys(claims, claim)
        # A new credit pool for each assignment: the credits of what was dropped at the last revocation went with the old one.
        self._pools |= {partition: CreditPool(self._credits) for partition in claims}
        self.in_background(asyncio.create_task(self._claim(claims, claim)))

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Stop to read; what was read and not committed is dropped."""
        gone = {tp.partition for tp in partitions if tp.topic == self.fence}
        self._ready -= gone
        self._forgotten = {shard for shard in self._forgotten if shard.partition not in gone}
        for partition in gone:
            self._claims.pop(partition, None)
            if partition in self._pools:
                self._pools[partition].close()
        for shard in [shard for shard in self._readers if shard.partition in gone]:
            self._readers.pop(shard).cancel()

    def due(self) -> bool:
        """Say whether there are places to drop."""
        return bool(self._forgotten)

    def finish(self, work: Slice) -> None:
        """Write the new positions, and the gaps; add the fence."""
        places: dict[ShardOf, msgspec.Struct] = {}
        produce = self._transport.transaction.produce
        for message in work.of(self.topic):
            reading: Reading = message.value  # type: ignore[assignment]  # Faust types a value as bytes
            places[reading.shard] = reading.place
            for gap in reading.gaps:
                produce(self.gaps, gap.table.encode(), msgspec.json.encode(gap))
                self._metrics.count(self._metrics.gaps, 1, gap.cause)
        touched = {shard.partition for shard in places}
        for shard, place in places.items():
            produce(self.fence, shard.key, msgspec.json.encode(place), shard.partition)
        forgotten, self._forgotten = self._forgotten, set()
        for shard in forgotten:
            produce(self.fence, shard.key, None, shard.partition)
            touched.add(shard.partition)
        for partition in touched:
            work.offsets[TP(self.fence, partition)] = self._follower.reached.get(partition, 0)

    def committed(self, work: Slice) -> None:
        """Give the credits back."""
        for message in work.of(self.topic):
            reading: Reading = message.value  # type: ignore[assignment]  # Faust types a value as bytes
            if self._loop is not None and reading.credit is not None:
                self._loop.call_soon_threadsafe(reading.credit)

    # -- what is known ------------------------------------------------------------------------------------------------

    def _apply(self, records: list[Message]) -> None:
        news = False
        for record in records:
            key, value = cast("bytes", record.key()), record.value()
            stream, _, shard_id = key.decode().rpartition("/")
            if is_snapshot(stream):
                if self.snapshots is not None and self.snapshots.take(stream, shard_id, value):
                    news |= value is not None and is_news(shard_id, value)
            elif self._api.owns(stream):
                self._known.take(key, value)
                news |= value is not None and (not shard_id or b'"finished":true' in value)
        if news and self._loop is not None:
            self._loop.call_soon_threadsafe(self.start_readers)

    async def _claim(self, partitions: set[int], claim: object) -> None:
        consumer: Consumer = self._transport.app.consumer  # type: ignore[assignment]  # Faust types it by its interface
        # Whoever read these shards before can commit what is in the log by now, and nothing after: so long we wait.
        found = await asyncio.gather(*(consumer.questions.end(TP(self.fence, p)) for p in partitions))
        await self._follower.wait_until(dict(zip(partitions, found, strict=True)))
        self._ready |= {partition for partition in partitions if self._claims.get(partition) is claim}
        self.start_readers()

    def start_readers(self) -> None:
        """Read what may be read by now, and forget what is done with."""
        for arn, listing in self._listings.of.items():
            places = self._known.of(arn)
            beginning = self._known.beginnings.get(arn)
            positions = {s: ReadUpTo(p.after, p.finished) for s, p in places.items()}
            if beginning is not None:
                done = ancestors(listing.shards, beginning.after)
                positions = dict.fromkeys(done, ReadUpTo(finished=True)) | positions
            lineage = Lineage(listing.shards, positions, listing.late)
            if beginning is None and not any(listing.late & {*shard.parents} for shard in listing.shards):
                self._discovery.begin(arn, listing)
            if beginning is None or self._listings.waits(arn, listing.table):
                continue
            for shard_id in lineage.readable():
                shard = ShardOf(listing.table, arn, shard_id)
                if shard.partition in self._ready and shard not in self._readers:
                    start = _start(shard_id, lineage, beginning, places.get(shard_id))
                    missed = () if shard_id in beginning.roots or shard_id in places else lineage.missed(shard_id)
                    gaps = tuple(gap_of(replace(shard, shard_id=parent), "missed") for parent in missed)
                    reading = self._shard_reader.read(shard, start, gaps, self._pools[shard.partition])
                    reader = asyncio.create_task(reading)
                    reader.add_done_callback(lambda _, shard=shard: self._api.left(shard))  # type: ignore[misc]
                    self._readers[shard] = self.in_background(reader)
            # Children are late in the listing: look again, once a shard; then at the usual interval.
            self._listings.ask_once(f"{arn}/{shard_id}" for shard_id in lineage.awaiting_children())
            listed, now = {shard.shard_id for shard in listing.shards}, time.time()
            old = [s for s, p in places.items() if p.finished and s not in listed and now - p.at > TRIMMED_S]
            done_with = {one for one in (*lineage.forgettable(), *old) if listing.is_absent(one)}
            self.forget_all([ShardOf(listing.table, arn, one) for one in done_with])
        if self.snapshots is not None:
            self.snapshots.go_on(self)

    def forget_all(self, shards: Sequence[ShardOf]) -> None:
        """Drop the places of shards that AWS has dropped, so that neither memory nor the topic grows with the years."""
        for shard in shards:
            if shard.partition in self._ready:
                self._forgotten.add(shard)
                self._readers.pop(shard, None)
                self._listings.asked.discard(shard.key.decode())

    # -- what it is to the others: `DiscoveryHost`, `ShardReaderHost`, `SnapshotHost` -----------------------------------

    def offer(self, reading: Reading) -> bool:
        """Bring something into the slices; False: its partition is not this worker's any more."""
        consumer: Consumer = self._transport.app.consumer  # type: ignore[assignment]  # Faust types it by its interface
        return consumer.offer(TP(self.topic, reading.shard.partition), reading)

    def claim(self, shard: ShardOf) -> object:
        """Return the claim under which a shard is this worker's, None when it is not, or not yet."""
        return self._claims.get(shard.partition) if shard.partition in self._ready else None

    def being_read(self, arn: str) -> set[str]:
        """Return the shards of a stream that are being read."""
        return {shard.shard_id for shard, task in self._readers.items() if shard.arn == arn and not task.done()}

    def is_awaited(self, table: str) -> bool:
        """Say whether a snapshot of a table waits for its streams."""
        return self.snapshots is not None and self.snapshots.runs(table)

    def is_gone(self, shard: ShardOf) -> bool:
        """Say whether the listing has said often enough that a shard is not there."""
        return self._listings.is_gone(shard)

    def look_again(self) -> None:
        """Have the shards listed soon."""
        self._discovery.look_again()

    def read(self, shard: ShardOf, reader: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Read a shard in a task, until the end or the revocation of its partition; one at a time."""
        if shard.partition in self._ready and shard not in self._readers:
            self._readers[shard] = self.in_background(asyncio.create_task(reader()))

    def forget(self, shard: ShardOf) -> None:
        """Drop the place of a shard."""
        self.forget_all([shard])

    def captured(self) -> set[str]:
        """Return the tables of whose streams the newest has been begun, and the others are read to their ends."""
        return self._listings.captured()

    def has_read(self, table: str, since: float) -> bool:
        """Say whether all that the table's streams had at a time has been read and committed."""
        return self._listings.has_read(table, since)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call something that blocks."""
        answer = await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        self._heard = time.monotonic()
        return answer

    def in_background(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Watch over a task; its failure ends the worker."""
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("Unexpected, in the source:", exc_info=error)
            stop_process(f"the source {self.topic} failed: {error!r}")  # a shard would silently be stuck


def _start(shard_id: str, lineage: Lineage, beginning: Beginning, place: ShardPosition | None) -> ShardStart:
    if place is not None and place.after is not None:
        return ShardStart(after=place.after)
    if shard_id in beginning.after:
        return ShardStart(after=beginning.after[shard_id])
    is_root, wanted = shard_id in beginning.roots, beginning.follows or lineage.is_followed(shard_id)
    # Older than what the stream holds is the same as all of it: so it is asked for a shard only that can hold what is older.
    if beginning.since is not None and (is_root or not wanted):
        return ShardStart(since=beginning.since)
    return ShardStart(first=lineage.first_of(shard_id) if wanted else beginning.oldest.get(shard_id))
