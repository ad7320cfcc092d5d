"""What a source believes of what AWS lists: nothing that was said once only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from pipeline.errors import HeadwaterError
from pipeline.metrics.worker_metrics import Metrics
from pipeline.services.aws import DeniedError, VanishedError
from pipeline.sources.base import Pacing, Stream, StreamApi
from pipeline.sources.shard_positions import Beginning, ShardOf, ShardPosition
from pipeline.sources.shards import Lineage, Shard
from pipeline.sources.stream_source import StreamSource
from pipeline.transport import Transport

ARN = "arn:aws:dynamodb:eu-west-1:0:table/orders/stream/2026-01-01T00:00:00.000"
TABLE = "orders"


class Api:
    """Answers what it is told, one answer after the other; the last one for ever."""

    def __init__(self, *listings: Sequence[Shard] | HeadwaterError) -> None:
        self.listings = list(listings)
        self.found: list[list[str] | HeadwaterError] = [[TABLE]]
        self.looked: list[str] = []
        self.at_look: Callable[[], object] = lambda: None

    def tables(self, known: set[str]) -> list[str]:
        found = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        self.at_look()
        if isinstance(found, HeadwaterError):
            raise found
        return found

    def named(self) -> list[str]:
        return ["named"]

    def stream_of(self, table: str) -> Stream:
        self.looked.append(table)
        return Stream(table, ARN)

    def shards_of(self, arn: str) -> list[Shard]:
        found = self.listings.pop(0) if len(self.listings) > 1 else self.listings[0]
        if isinstance(found, HeadwaterError):
            raise found
        return list(found)


def a_source(api: Api) -> StreamSource:
    transport = cast("Transport", SimpleNamespace(client_conf=dict))
    pacing = cast("Pacing", SimpleNamespace(threads=1, discovery_interval=0.0))
    return StreamSource(transport, cast("StreamApi", api), pacing, cast("Metrics", None), "@s", "shards", "gaps")


def know(source: StreamSource, shard_id: str, value: msgspec.Struct) -> None:
    source._known.take(f"{ARN}/{shard_id}".encode(), msgspec.json.encode(value))


def look(source: StreamSource, times: int = 1) -> list[str]:
    """Look so many times; return the shards that are listed then."""

    async def looks() -> None:
        for _ in range(times):
            await source._discovery.list(TABLE, ARN)

    asyncio.run(looks())
    return [shard.shard_id for shard in source._listings.of[ARN].shards] if ARN in source._listings.of else []


def readable(source: StreamSource) -> list[str]:
    listing = source._listings.of[ARN]
    return list(Lineage(listing.shards, {}, listing.late).readable())


A, B, C = Shard("a"), Shard("b", ("a",)), Shard("c", ("b",))


def test_a_shard_stays_in_the_listing_until_two_in_a_row_lack_it() -> None:
    source = a_source(Api([A, B], [B], [A, B], [B], [B]))
    assert look(source) == ["a", "b"]
    assert look(source) == ["b", "a"], "one answer proves nothing"
    assert look(source) == ["a", "b"]
    assert look(source) == ["b", "a"]
    assert not source.is_gone(ShardOf(TABLE, ARN, "a"))
    assert look(source) == ["b"]
    assert source.is_gone(ShardOf(TABLE, ARN, "a"))


def test_a_shard_that_is_listed_again_counts_from_the_beginning() -> None:
    source = a_source(Api([A, B], [B], [A, B], [B]))
    look(source, 4)
    assert not source.is_gone(ShardOf(TABLE, ARN, "a"))


def test_a_finished_parent_is_not_forgotten_for_one_listing_without_it() -> None:
    def a_knowing_source(api: Api) -> StreamSource:
        source = a_source(api)
        source._ready = set(range(1000))
        know(source, "", Beginning(TABLE, roots=("a",)))
        know(source, "a", ShardPosition(TABLE, "9", finished=True, at=time.time()))
        know(source, "b", ShardPosition(TABLE, "12"))
        return source

    source = a_knowing_source(Api([A, B], [B], [A, B]))
    source._readers[ShardOf(TABLE, ARN, "b")] = cast("Any", SimpleNamespace(done=lambda: False))
    for listings in (2, 1):
        look(source, listings)
        source.start_readers()
        assert source._forgotten == set()
    gone = a_knowing_source(Api([B]))
    gone._readers[ShardOf(TABLE, ARN, "b")] = cast("Any", SimpleNamespace(done=lambda: False))
    look(gone)
    gone.start_readers()
    assert gone._forgotten == set(), "a worker that has just started has one listing"
    look(gone)
    gone.start_readers()
    assert gone._forgotten == {ShardOf(TABLE, ARN, "a")}


def test_a_grandchild_waits_until_it_is_said_twice_that_its_parent_is_not_listed() -> None:
    source = a_source(Api([A, C], [A, B, C]))
    look(source)
    assert readable(source) == ["a"]
    assert source._discovery._look_now.is_set(), "the next look is not far"
    look(source)
    assert readable(source) == ["a"], "its parent has come: it waits for that"
    gone = a_source(Api([A, C]))
    look(gone, 2)
    assert readable(gone) == ["a", "c"], "its parent was trimmed"


def test_a_stream_is_begun_when_no_parent_may_be_late() -> None:
    source = a_source(Api([C]))
    begun: list[str] = []
    source._discovery.begin = lambda arn, listing: begun.append(arn)  # type: ignore[method-assign]
    look(source)
    source.start_readers()
    assert begun == []
    look(source)
    source.start_readers()
    assert begun == [ARN]


def test_that_a_stream_does_not_exist_is_believed_when_it_is_said_twice() -> None:
    gone = VanishedError("the stream does not exist")
    source = a_source(Api([A], gone, [A], gone, gone))
    know(source, "", Beginning(TABLE, roots=("a",)))
    know(source, "a", ShardPosition(TABLE, "9"))
    look(source, 4)
    assert not source.is_gone(ShardOf(TABLE, ARN, "a"))
    look(source)
    assert source.is_gone(ShardOf(TABLE, ARN, "a"))


def test_a_shard_that_is_read_and_in_no_listing_is_gone_after_two() -> None:
    source = a_source(Api([B], [B], [B], [B]))
    source._readers[ShardOf(TABLE, ARN, "x")] = cast("Any", SimpleNamespace(done=lambda: False))
    look(source)
    assert not source.is_gone(ShardOf(TABLE, ARN, "x"))
    look(source, 3)
    assert source.is_gone(ShardOf(TABLE, ARN, "x"))


class EnoughError(Exception):
    """Ends a discovery."""


def discover(api: Api, looks: int) -> list[str]:
    """Return the tables that were looked at, a blank after each look at the list."""
    source, left = a_source(api), iter(range(looks))

    def count() -> None:
        api.looked.append("")
        if next(left, None) is None:
            raise EnoughError

    api.at_look = count

    async def run() -> None:
        with suppress(EnoughError):
            await source._discovery.run()

    asyncio.run(run())
    return api.looked[1:-1]


def test_a_table_that_one_list_lacks_is_looked_at_once_more() -> None:
    api = Api([A])
    api.found = [[TABLE], [], [TABLE], [], []]
    assert discover(api, 5) == [TABLE, "", TABLE, "", TABLE, "", TABLE, ""]


def test_tables_that_are_written_out_are_read_although_the_list_cannot_be_had() -> None:
    api = Api([A])
    api.found = [DeniedError("permission is missing")]
    assert discover(api, 1) == ["named"]
