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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import msgspec
from confluent_kafka import Message
from faust.types import TP

from models.change import MalformedChangeError, decode
from models.gap import Cause, Gap
from pipeline.errors import HeadwaterError, TransientError, backoff
from pipeline.metrics import Metrics
from pipeline.services.aws import ExpiredIteratorError, NothingYetError, TrimmedError, VanishedError
from pipeline.sources.credit import ALL_CREDITS, Purse
from pipeline.sources.dynamodb.records import Cut
from pipeline.sources.reading import NOTHING, Reading
from pipeline.sources.shard_positions import Beginning, Known, Place, ShardOf
from pipeline.sources.shards import Lineage, Position, Shard, ancestors
from pipeline.sources.snapshots.known import is_news, is_snapshot
from pipeline.sources.snapshots.snapshotter import Snapshotter
from pipeline.sources.snapshots.tips import is_reached, tip_of
from pipeline.transport import Follower, Slice, Source, Transport
from pipeline.transport.fatal import stop_process

if TYPE_CHECKING:
    from pipeline.transport.consumer import Consumer

log = logging.getLogger(__name__)
T = TypeVar("T")

FULL = 100
"""Records in an answer from which on the next call comes at once: there is more."""
IDLE = 1.0
"""Seconds of the longest pause of a shard that gives nothing, as long as the budget of calls does not ask for more."""
LOOKS = 5
"""Answers in which the oldest record of a shard is looked for: they may be empty although there are records."""
DRAINED = 2
"""Listings in a row in which all shards of a switched-off stream are read: then the table's next stream is begun."""
SAID = 2
"""Answers in a row that say that a shard, a stream or a table is not there: one proves nothing, a listing may be late."""
SILENT = 60.0
"""Seconds without an answer of AWS to anything after which a worker that reads shards is not ready."""
TIP = 1.0
"""Seconds between two notes that a shard holds nothing more, while a snapshot of its table waits for it."""
TRIMMED = 2 * 86_400.0
"""Seconds after which a finished shard that is not listed was trimmed for certain, and is not merely listed late."""


class Start(NamedTuple):
    """Where in a shard to begin: after a sequence number, at the first one it ever had, at a time, or at what is there."""

    after: str | None = None
    first: str | None = None
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """The stream of a table, or a stream that is no table's: then the table is its name."""

    table: str
    arn: str


class StreamApi(Protocol):
    """What a source needs to know of AWS. Thread-safe, blocking; every error is a HeadwaterError that names the thing."""

    def tables(self, known: set[str]) -> list[str]:
        """Return the tables to capture now; `known` were captured before."""

    def named(self) -> list[str]:
        """Return the tables that are written out. Asks nobody."""
        return []

    def stream_of(self, table: str) -> Stream:
        """Return the table's newest stream."""

    def owns(self, arn: str) -> bool:
        """Say whether a stream is of the kind, and of a table, that this source captures."""

    def shards_of(self, arn: str) -> list[Shard]:
        """Return the whole listing of a stream's shards."""

    def iterator(self, arn: str, shard_id: str, start: Start) -> str:
        """Return an iterator; raise TrimmedError when what it should begin at is gone."""

    def records(self, iterator: str, shard: ShardOf) -> Cut:
        """Return an answer, cut into changes; raise NothingYetError when one is to come by itself, after a pause."""

    async def pause(self, shard: ShardOf, seconds: float) -> None:
        """Wait until it is worth while to ask for the shard's records again."""
        await asyncio.sleep(seconds)

    def left(self, shard: ShardOf) -> None:
        """Take note that this worker does not read the shard any more. Called on the event loop; must not block."""
        return


class Pacing(Protocol):
    """How often to ask: see the settings of the same names."""

    @property
    def discovery_interval(self) -> float:
        """Seconds between two looks for new shards and streams."""

    @property
    def poll_interval(self) -> float:
        """Seconds until a shard that gave little is asked again."""

    @property
    def idle_calls(self) -> float:
        """Calls a second that idle shards make at most together."""

    @property
    def threads(self) -> int:
        """Calls under way at once."""


@dataclass(slots=True)
class _Listing:
    table: str
    shards: Sequence[Shard] = field(default_factory=list)
    absent: Mapping[str, int] = field(default_factory=dict)
    """Shards that are known of and not listed, and by how many listings in a row."""

    def is_absent(self, shard_id: str) -> bool:
        """Say whether it is certain that AWS does not list a shard any more."""
        return self.absent.get(shard_id, 0) >= SAID

    @property
    def late(self) -> set[str]:
        """Shards that are not listed, and may be soon."""
        return {shard_id for shard_id, times in self.absent.items() if times < SAID}


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
        self._since = since
        """The time from which on the changes of a stream that is found now are wanted."""
        self._start_after = dict(start_after or {})
        """By shard ID: where another reader ended."""
        self.snapshots = snapshots
        self._pool = ThreadPoolExecutor(pacing.threads, topic)
        self._follower = Follower(transport.client_conf(), fence, self._apply)
        self._known = Known({}, {})
        self._listings: dict[str, _Listing] = {}
        self._gone: dict[str, int] = {}
        """Streams that AWS does not know, and how many answers in a row have said so."""
        self._claims: dict[int, object] = {}
        """One object an assignment: what was found out under an earlier one does not count for this one."""
        self._ready: set[int] = set()
        self._readers: dict[ShardOf, asyncio.Task[None]] = {}
        self._begun: dict[ShardOf, object] = {}
        """Streams whose beginning was offered, and under which claim."""
        self._forgotten: set[ShardOf] = set()
        """Shards whose places are to be dropped with the next slice."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._discovery: asyncio.Task[None] | None = None
        self._look_now = asyncio.Event()
        self._asked: set[str] = set()
        self._drained: dict[str, int] = {}
        """Streams of which all is read, and how many listings in a row have said so: a last shard may be listed late."""
        self._purses: dict[int, Purse] = {}
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
        return f"AWS has not answered for {seconds:.0f} s" if self.reading and seconds > SILENT else ""

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
        self._purses |= {partition: Purse(self._credits) for partition in claims}
        self._keep(asyncio.create_task(self._claim(claims, claim)))

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Stop to read; what was read and not committed is dropped."""
        gone = {tp.partition for tp in partitions if tp.topic == self.fence}
        self._ready -= gone
        self._forgotten = {shard for shard in self._forgotten if shard.partition not in gone}
        for partition in gone:
            self._claims.pop(partition, None)
            if partition in self._purses:
                self._purses[partition].close()
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
            self._loop.call_soon_threadsafe(self._start_readers)

    async def _claim(self, partitions: set[int], claim: object) -> None:
        consumer: Consumer = self._transport.app.consumer  # type: ignore[assignment]  # Faust types it by its interface
        # Whoever read these shards before can commit what is in the log by now, and nothing after: so long we wait.
        found = await asyncio.gather(*(consumer.questions.end(TP(self.fence, p)) for p in partitions))
        await self._follower.wait_until(dict(zip(partitions, found, strict=True)))
        self._ready |= {partition for partition in partitions if self._claims.get(partition) is claim}
        self._start_readers()

    async def _discover(self) -> None:
        failing: dict[str, str] = {}
        tables: Sequence[str] = ()
        unseen: dict[str, int] = {}
        while True:
            self._look_now.clear()
            try:
                found = await self.call(self._api.tables, self._known.tables())
            except HeadwaterError as error:
                _say_once(failing, "", error)
                # Those that are known without asking are read all the same.
                tables = list(dict.fromkeys([*tables, *self._api.named(), *self._known.tables()]))
            else:
                failing.pop("", None)
                unseen = {table: unseen.get(table, 0) + 1 for table in tables if table not in found}
                tables = [*found, *(table for table, times in unseen.items() if times < SAID)]
            for table in tables:
                try:
                    await self._list_table(table)
                except HeadwaterError as error:
                    _say_once(failing, table, error)  # the others go on; it may come, the credentials be renewed
                else:
                    failing.pop(table, None)
                self._start_readers()  # not only when all are listed: a look at many takes a while
            try:
                await asyncio.wait_for(self._look_now.wait(), self._pacing.discovery_interval)
            except asyncio.TimeoutError:
                continue
            await asyncio.sleep(min(1.0, self._pacing.discovery_interval))  # children appear late: ask with a pause

    async def _list_table(self, table: str) -> None:
        older = self._known.streams_of(table) | {arn for arn, one in self._listings.items() if one.table == table}
        try:
            newest = (await self.call(self._api.stream_of, table)).arn
        finally:  # also of a table that is gone or whose stream is off: what was written before can still be read
            for arn in sorted(older):
                await self._list(table, arn)
        if newest not in older:
            await self._list(table, newest)

    async def _list(self, table: str, arn: str) -> None:
        try:
            found = await self.call(self._api.shards_of, arn)
            self._gone.pop(arn, None)
            self._listings[arn] = self._merged(table, arn, found)
        except VanishedError:
            self._gone[arn] = self._gone.get(arn, 0) + 1
            if self._gone[arn] < SAID:
                self._look_now.set()
                return
            # Switched off more than a day ago, or its table deleted. What was not read to its end there is a gap: so the
            # readers of all shards that are known, begun or not, shall see for themselves that they are gone.
            places, shards = self._known.of(arn), self._last_known(arn)
            if {shard.shard_id for shard in shards} <= places.keys() and all(
                place.finished for place in places.values()
            ):
                self._forget([ShardOf(table, arn, shard_id) for shard_id in ("", *places)])
                self._listings.pop(arn, None)
                self._drained[arn] = DRAINED
                return
            self._listings[arn] = _Listing(table, shards)
        places = self._known.of(arn)
        unread = {shard.shard_id for shard in self._listings[arn].shards} - {s for s, p in places.items() if p.finished}
        left = unread or not all(place.finished for place in places.values())
        self._drained[arn] = 0 if left else self._drained.get(arn, 0) + 1
        if self._drained[arn] == 1:
            self._look_now.set()

    def _merged(self, table: str, arn: str, found: Sequence[Shard]) -> _Listing:
        """Return a listing with what only this one lacks, and what it lacks of all that is known of."""
        former, places = self._listings.get(arn, _Listing(table)), self._known.of(arn)
        listed, before = {shard.shard_id for shard in found}, {shard.shard_id: shard for shard in former.shards}
        parents = {parent for shard in found if shard.shard_id not in places for parent in shard.parents}
        read = {shard.shard_id for shard, task in self._readers.items() if shard.arn == arn and not task.done()}
        unlisted = {*parents, *before, *places, *read} - listed
        absent = {shard_id: former.absent.get(shard_id, 0) + 1 for shard_id in unlisted}
        if any(absent.get(parent, SAID) < SAID for parent in parents - places.keys()):
            self._look_now.set()  # a child waits until it is certain that its parent is gone
        kept = [shard for shard_id, shard in before.items() if absent.get(shard_id, SAID) < SAID]
        return _Listing(table, [*found, *kept], absent)

    def _is_gone(self, shard: ShardOf) -> bool:
        """Say whether the listing has said often enough that a shard is not there."""
        listing = self._listings.get(shard.arn)
        return self._gone.get(shard.arn, 0) >= SAID or (listing is not None and listing.is_absent(shard.shard_id))

    def _last_known(self, arn: str) -> Sequence[Shard]:
        """Return the shards of a stream that is gone: as it was last listed, or was begun if no shard of it ever was."""
        if arn in self._listings:
            return self._listings[arn].shards
        beginning = self._known.beginnings.get(arn)
        return [] if beginning is None or self._known.of(arn) else [Shard(one) for one in beginning.roots]

    def _waits(self, arn: str, table: str) -> bool:
        """Say whether an older stream of the table is not read to its end: its changes come first."""
        listed = {one for one, listing in self._listings.items() if listing.table == table}
        older = {one for one in listed | self._known.begun(table) if one < arn}  # by their dates
        # At its start a worker may have listed the table before it knew of the older ones.
        if new := {f"{one}/" for one in older - self._listings.keys()} - self._asked:
            self._asked |= new
            self._look_now.set()
        return any(self._drained.get(one, 0) < DRAINED for one in older)

    def _start_readers(self) -> None:
        for arn, listing in self._listings.items():
            places = self._known.of(arn)
            beginning = self._known.beginnings.get(arn)
            positions = {s: Position(p.after, p.finished) for s, p in places.items()}
            if beginning is not None:
                done = ancestors(listing.shards, beginning.after)
                positions = dict.fromkeys(done, Position(finished=True)) | positions
            lineage = Lineage(listing.shards, positions, listing.late)
            if beginning is None and not any(listing.late & {*shard.parents} for shard in listing.shards):
                self._begin(arn, listing)
            if beginning is None or self._waits(arn, listing.table):
                continue
            for shard_id in lineage.readable():
                shard = ShardOf(listing.table, arn, shard_id)
                if shard.partition in self._ready and shard not in self._readers:
                    start = _start(shard_id, lineage, beginning, places.get(shard_id))
                    missed = () if shard_id in beginning.roots or shard_id in places else lineage.missed(shard_id)
                    gaps = tuple(self._gap(replace(shard, shard_id=parent), "missed") for parent in missed)
                    reader = asyncio.create_task(self._read(shard, start, gaps))
                    reader.add_done_callback(lambda _, shard=shard: self._api.left(shard))  # type: ignore[misc]
                    self._readers[shard] = self._keep(reader)
            # Children are late in the listing: look again, once a shard; then at the usual interval.
            if new := {f"{arn}/{shard_id}" for shard_id in lineage.awaiting_children()} - self._asked:
                self._asked |= new
                self._look_now.set()
            listed, now = {shard.shard_id for shard in listing.shards}, time.time()
            old = [s for s, p in places.items() if p.finished and s not in listed and now - p.at > TRIMMED]
            done_with = {one for one in (*lineage.forgettable(), *old) if listing.is_absent(one)}
            self._forget([ShardOf(listing.table, arn, one) for one in done_with])
        if self.snapshots is not None:
            self.snapshots.go_on(self)

    def _begin(self, arn: str, listing: _Listing) -> None:
        """Write down how a stream begins; its shards are read when that is committed."""
        stream = ShardOf(listing.table, arn, "")
        claim = self._claims.get(stream.partition)
        if stream.partition in self._ready and self._begun.get(stream) is not claim:
            self._begun[stream] = claim
            self._keep(asyncio.create_task(self._write_beginning(stream, listing.shards, claim)))

    async def _write_beginning(self, stream: ShardOf, shards: Sequence[Shard], claim: object) -> None:
        former = self._known.streams_of(stream.table) - {stream.arn}
        # After another stream of the same table nothing may be left out.
        since, oldest, written = None if former else self._since(), {}, False
        roots = tuple(shard.shard_id for shard in shards)
        try:
            if since is None and not former:
                first = [shard for shard in shards if not set(shard.parents) & set(roots)]
                found = await asyncio.gather(*(self._oldest(stream, shard) for shard in first))
                oldest = {shard.shard_id: at for shard, at in zip(first, found, strict=True) if at is not None}
            if self._claims.get(stream.partition) is not claim:
                return
            gaps = (self._gap(stream, "new stream"),) if former else ()
            after = {} if former else {s: at for s, at in self._start_after.items() if s in roots}
            beginning = Beginning(stream.table, since, bool(former), roots, oldest, after)
            written = self.offer(Reading(stream, NOTHING, beginning, gaps))
        except VanishedError:
            pass  # the listing is old: the next one does not have it
        except HeadwaterError as error:
            log.warning("Still trying to begin the stream of %s: %s", stream.table, error)
        finally:
            if not written and self._begun.get(stream) is claim:
                del self._begun[stream]  # tried again with the next listing
        if written and former:
            log.error(
                "The table %s has a new stream: what changed while it was off is lost: %s", stream.table, stream.arn
            )

    async def _oldest(self, stream: ShardOf, shard: Shard) -> str | None:
        """Return the sequence number from which on a shard holds everything now; None: it cannot be known."""
        asked = replace(stream, shard_id=shard.shard_id)
        try:
            if shard.first is not None:
                await self.call(self._api.iterator, stream.arn, shard.shard_id, Start(first=shard.first))
                return shard.first  # AWS would refuse it if the first record were gone
        except TrimmedError:
            pass
        iterator: str | None = await self.call(self._api.iterator, stream.arn, shard.shard_id, Start())
        for _ in range(LOOKS):
            found = await self.call(self._api.records, iterator, asked)
            iterator = found.next_iterator
            if found.first is not None or iterator is None:
                return found.first
        return None

    def _forget(self, shards: Sequence[ShardOf]) -> None:
        """Drop the places of shards that AWS has dropped, so that neither memory nor the topic grows with the years."""
        for shard in shards:
            if shard.partition in self._ready:
                self._forgotten.add(shard)
                self._readers.pop(shard, None)
                self._asked.discard(shard.key.decode())

    def _gap(self, shard: ShardOf, cause: Cause, after: str | None = None) -> Gap:
        return Gap(shard.table, shard.arn, shard.shard_id, after, cause, at=round(time.time(), 3))

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, shard: ShardOf, start: Start, gaps: tuple[Gap, ...]) -> None:
        """Read a shard from a position to its end; stays registered until its partition is revoked."""
        purse = self._purses[shard.partition]
        iterator, errors, idle, after, tip_at, told = None, 0, 0, start.after, 0.0, 0.0
        while True:
            await purse.take()
            offered = False
            try:
                if iterator is None:
                    iterator = await self.call(self._api.iterator, shard.arn, shard.shard_id, start)
                asked = time.time()
                found = await self.call(self._api.records, iterator, shard)
                iterator, errors = found.next_iterator, 0
                gaps = tuple(msgspec.structs.replace(gap, before=found.first) for gap in gaps)
                count, finished = len(found.records) + len(found.unreadable), iterator is None
                awaited = self.snapshots is not None and self.snapshots.runs(shard.table)
                if awaited and not (finished or found.behind):
                    tip_at = max(tip_at, tip_of(_last_time(found, asked), idle, asked))
                if count or finished or (gaps and not found.behind) or (awaited and tip_at > told + TIP):
                    place = Place(shard.table, found.last or after, finished, round(asked, 3), round(tip_at, 3))
                    offered, after, gaps = (
                        self.offer(Reading(shard, found, place, gaps, credit=purse.give)),
                        place.after,
                        (),
                    )
                    start, told = Start(after) if after is not None else start, tip_at
                if finished:  # also when this last answer has records: an answer can carry both
                    return
                idle = 0 if count or found.behind else idle + 1
                pause = max(found.wait, 0.0 if count >= FULL else self._pause(idle))
            except NothingYetError:
                pause = self._pacing.poll_interval
            except ExpiredIteratorError:
                iterator, pause = None, 0.0
            except TrimmedError as error:
                log.error("%s: a gap is written down", error)
                iterator, gaps, pause = None, (*gaps, self._gap(shard, "trimmed", after)), self._pacing.poll_interval
                start, after = Start(), None
            except VanishedError as error:
                if self._is_gone(shard):
                    log.error("%s: a gap is written down", error)
                    place = Place(shard.table, after, finished=True, at=round(time.time(), 3))
                    lost = (*gaps, self._gap(shard, "vanished", after))
                    offered = self.offer(Reading(shard, NOTHING, place, lost, credit=purse.give))
                    return
                errors += 1  # one answer proves nothing: the shard is asked again, until the listing has said it twice
                if errors == 3:
                    log.warning("Still trying, since the listing does not say so: %s", error)
                iterator, pause = None, backoff(errors)
                self._look_now.set()
            except HeadwaterError as error:  # a throttle, expired credentials, anything: the shard must be read on
                errors += 1
                # One throttle is daily bread; more, or anything else, is said once.
                if errors == (3 if isinstance(error, TransientError) else 1):
                    log.warning("Still trying: %s", error)
                pause = backoff(errors)
            finally:
                if not offered:
                    purse.give()
            if pause:
                await self._api.pause(shard, pause)

    def _pause(self, idle: int) -> float:
        """Return the seconds until the next call of a shard that gave nothing so many times in a row."""
        interval = self._pacing.poll_interval
        return min(interval * 2.0 ** min(idle, 16), max(IDLE, interval, self.reading / self._pacing.idle_calls))

    # -- for snapshots: see `snapshot.Host` ---------------------------------------------------------------------------

    def offer(self, reading: Reading) -> bool:
        """Bring something into the slices; False: its partition is not this worker's any more."""
        consumer: Consumer = self._transport.app.consumer  # type: ignore[assignment]  # Faust types it by its interface
        return consumer.offer(TP(self.topic, reading.shard.partition), reading)

    def claim(self, shard: ShardOf) -> object:
        """Return the claim under which a shard is this worker's, None when it is not, or not yet."""
        return self._claims.get(shard.partition) if shard.partition in self._ready else None

    def read(self, shard: ShardOf, reader: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Read a shard in a task, until the end or the revocation of its partition; one at a time."""
        if shard.partition in self._ready and shard not in self._readers:
            self._readers[shard] = self._keep(asyncio.create_task(reader()))

    def forget(self, shard: ShardOf) -> None:
        """Drop the place of a shard."""
        self._forget([shard])

    def captured(self) -> set[str]:
        """Return the tables of this source of whose streams the newest has been begun, and the others are read to their ends.

        What an older one still delivers is from before a gap: it must not speak for items that changed within the gap.
        """
        listed = {listing.table for listing in self._listings.values()}
        return {table for table in listed & self._known.tables() if self._is_on_newest(table)}

    def _is_on_newest(self, table: str) -> bool:
        *older, _ = sorted(self._known.streams_of(table))  # by their dates
        return all(self._drained.get(arn, 0) >= DRAINED for arn in older)

    def has_read(self, table: str, since: float) -> bool:
        """Say whether all that the table's streams had at a time has been read and committed."""
        streams = [(arn, listing.shards) for arn, listing in self._listings.items() if listing.table == table]
        return bool(streams) and all(
            # What is switched off and read to its end brings nothing more.
            self._drained.get(arn, 0) >= DRAINED or is_reached(shards, self._known.of(arn), since)
            for arn, shards in streams
        )

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call something that blocks."""
        answer = await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        self._heard = time.monotonic()
        return answer

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("Unexpected, in the source:", exc_info=error)
            stop_process(f"the source {self.topic} failed: {error!r}")  # a shard would stand still in silence


def _start(shard_id: str, lineage: Lineage, beginning: Beginning, place: Place | None) -> Start:
    if place is not None and place.after is not None:
        return Start(after=place.after)
    if shard_id in beginning.after:
        return Start(after=beginning.after[shard_id])
    is_root, wanted = shard_id in beginning.roots, beginning.follows or lineage.is_followed(shard_id)
    # Older than what the stream holds is the same as all of it: so it is asked for a shard only that can hold what is older.
    if beginning.since is not None and (is_root or not wanted):
        return Start(since=beginning.since)
    return Start(first=lineage.first_of(shard_id) if wanted else beginning.oldest.get(shard_id))


def _last_time(found: Cut, asked: float) -> float | None:
    """Return when the last change of an answer happened, None when it has none."""
    if not found.records:
        return None
    try:
        return min(asked, decode(found.records[-1]["value"]).ts_us / 1e6)
    except (MalformedChangeError, RecursionError):
        return 0.0  # it says nothing


def _say_once(failing: dict[str, str], what: str, error: HeadwaterError) -> None:
    if failing.get(what) != error.message:
        log.error("Discovery: %s", error)
    failing[what] = error.message
