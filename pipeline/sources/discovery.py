"""Discovery: which tables, streams and shards there are, asked again and again; and where a new stream begins."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from models.gap import Cause, Gap
from pipeline.errors import HeadwaterError
from pipeline.services.aws import TrimmedError, VanishedError
from pipeline.sources.base import NOTHING, Pacing, Reading, ShardStart, StreamApi
from pipeline.sources.listings import SAID, Listing, Listings
from pipeline.sources.shard_positions import Beginning, KnownPositions, ShardOf
from pipeline.sources.shards import Shard

log = logging.getLogger(__name__)
T = TypeVar("T")

LOOKS = 5
"""Answers in which the oldest record of a shard is looked for: they may be empty although there are records."""


class DiscoveryHost(Protocol):
    """What the source does for its discovery."""

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call something that blocks."""

    def offer(self, reading: Reading) -> bool:
        """Bring something into the slices; False: its partition is not this worker's any more."""

    def claim(self, shard: ShardOf) -> object:
        """Return the claim under which a shard is this worker's, None when it is not, or not yet."""

    def in_background(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Watch over a task; its failure ends the worker."""

    def being_read(self, arn: str) -> set[str]:
        """Return the shards of a stream that are being read."""

    def forget_all(self, shards: Sequence[ShardOf]) -> None:
        """Drop the places of shards."""

    def start_readers(self) -> None:
        """Read what may be read by now."""


class Discovery:
    """The looks at AWS of one source."""

    def __init__(
        self,
        host: DiscoveryHost,
        api: StreamApi,
        pacing: Pacing,
        known: KnownPositions,
        *,
        since: Callable[[], float | None],
        start_after: Mapping[str, str],
    ) -> None:
        """`since`: from which time on changes of a new stream are wanted; `start_after`: by shard ID, where others ended."""
        self._host, self._api, self._pacing, self._known = host, api, pacing, known
        self._since, self._start_after = since, start_after
        self._look_now = asyncio.Event()
        self.listings = Listings(known, self._look_now.set)
        self._begun: dict[ShardOf, object] = {}
        """Streams whose beginning was offered, and under which claim."""

    def look_again(self) -> None:
        """Look soon, and not after the usual interval."""
        self._look_now.set()

    async def run(self) -> None:
        """Look forever."""
        failing: dict[str, str] = {}
        tables: Sequence[str] = ()
        unseen: dict[str, int] = {}
        while True:
            self._look_now.clear()
            try:
                found = await self._host.call(self._api.tables, self._known.tables())
            except HeadwaterError as error:
                _say_once(failing, "", error)
                # Those that are known without asking are read anyway.
                tables = list(dict.fromkeys([*tables, *self._api.named(), *self._known.tables()]))
            else:
                failing.pop("", None)
                unseen = {table: unseen.get(table, 0) + 1 for table in tables if table not in found}
                tables = [*found, *(table for table, times in unseen.items() if times < SAID)]
            for table in tables:
                try:
                    await self._list_table(table)
                except HeadwaterError as error:
                    _say_once(failing, table, error)  # the others continue; it may come, the credentials be renewed
                else:
                    failing.pop(table, None)
                self._host.start_readers()  # not only when all are listed: a look at many takes a while
            try:
                await asyncio.wait_for(self._look_now.wait(), self._pacing.discovery_interval)
            except asyncio.TimeoutError:
                continue
            await asyncio.sleep(min(1.0, self._pacing.discovery_interval))  # children appear late: ask with a pause

    async def _list_table(self, table: str) -> None:
        older = self.listings.streams_of(table)
        try:
            newest = (await self._host.call(self._api.stream_of, table)).arn
        finally:  # also of a table that is gone or whose stream is off: what was written before can still be read
            for arn in sorted(older):
                await self.list(table, arn)
        if newest not in older:
            await self.list(table, newest)

    async def list(self, table: str, arn: str) -> None:
        """List the shards of a stream."""
        try:
            found = await self._host.call(self._api.shards_of, arn)
        except VanishedError:
            self._host.forget_all(self.listings.take_vanished(table, arn))
        else:
            self.listings.take(table, arn, found, self._host.being_read(arn))

    # -- where streams begin --------------------------------------------------------------------------------------------

    def begin(self, arn: str, listing: Listing) -> None:
        """Write down how a stream begins; its shards are read when that is committed."""
        stream = ShardOf(listing.table, arn, "")
        claim = self._host.claim(stream)
        if claim is not None and self._begun.get(stream) is not claim:
            self._begun[stream] = claim
            self._host.in_background(asyncio.create_task(self._write_beginning(stream, listing.shards, claim)))

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
            if self._host.claim(stream) is not claim:
                return
            gaps = (gap_of(stream, "new stream"),) if former else ()
            after = {} if former else {s: at for s, at in self._start_after.items() if s in roots}
            beginning = Beginning(stream.table, since, bool(former), roots, oldest, after)
            written = self._host.offer(Reading(stream, NOTHING, beginning, gaps))
        except VanishedError:
            pass  # the listing is old: the next one does not have it
        except HeadwaterError as error:
            log.warning("Still trying to start the stream of %s: %s", stream.table, error)
        finally:
            if not written and self._begun.get(stream) is claim:
                del self._begun[stream]  # tried again with the next listing
        if written and former:
            log.error(
                "The table %s has a new stream: what changed while it was off is lost: %s", stream.table, stream.arn
            )

    async def _oldest(self, stream: ShardOf, shard: Shard) -> str | None:
        """Return the sequence number from which on a shard holds everything now; None: it cannot be known."""
        call, asked = self._host.call, replace(stream, shard_id=shard.shard_id)
        try:
            if shard.first is not None:
                await call(self._api.iterator, stream.arn, shard.shard_id, ShardStart(first=shard.first))
                return shard.first  # AWS would refuse it if the first record were gone
        except TrimmedError:
            pass
        iterator: str | None = await call(self._api.iterator, stream.arn, shard.shard_id, ShardStart())
        for _ in range(LOOKS):
            found = await call(self._api.records, iterator, asked)
            iterator = found.next_iterator
            if found.first is not None or iterator is None:
                return found.first
        return None


def gap_of(shard: ShardOf, cause: Cause, after: str | None = None) -> Gap:
    """Return a gap of a shard that is noticed now."""
    return Gap(shard.table, shard.arn, shard.shard_id, after, cause, at=round(time.time(), 3))


def _say_once(failing: dict[str, str], what: str, error: HeadwaterError) -> None:
    if failing.get(what) != error.message:
        log.error("Discovery: %s", error)
    failing[what] = error.message
