"""When a snapshot may begin, and that what it remembers leaves nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from models.snapshot import BEGIN, END, mark
from pipeline.metrics.worker_metrics import Metrics
from pipeline.sources.base import Pacing, StreamApi
from pipeline.sources.shard_positions import Beginning, ShardPosition
from pipeline.sources.shards import Shard
from pipeline.sources.snapshots.known import Snapshot
from pipeline.sources.snapshots.s3_export import token
from pipeline.sources.stream_source import StreamSource
from pipeline.state.delivered import Delivered
from pipeline.state.table_partitions import TablePartition
from pipeline.steps.snapshot import admit
from pipeline.transport import Slice, Transport
from pipeline.transport.logs import UNKNOWN

ARN = "arn:aws:dynamodb:eu-west-1:0:table/orders/stream/{}"
OLD, NEW = ARN.format("2026-01-01T00:00:00.000"), ARN.format("2026-01-02T00:00:00.000")


def a_source() -> StreamSource:
    transport = cast("Transport", SimpleNamespace(client_conf=dict))
    api = cast("StreamApi", SimpleNamespace(shards_of=lambda _: [Shard("a")]))
    pacing = cast("Pacing", SimpleNamespace(threads=1))
    return StreamSource(transport, api, pacing, cast("Metrics", None), "@s", "shards", "gaps")


def know(source: StreamSource, arn: str, shard_id: str, value: msgspec.Struct) -> None:
    source._known.take(f"{arn}/{shard_id}".encode(), msgspec.json.encode(value))


def test_a_snapshot_waits_until_the_table_s_older_streams_are_read_to_their_ends() -> None:
    """What they deliver is from before a gap: behind the mark it would speak for items that changed within the gap."""

    async def scenario() -> list[set[str]]:
        source, found = a_source(), []
        for arn in (OLD, NEW):
            know(source, arn, "", Beginning("orders"))
            await source._discovery.list("orders", arn)
        found.append(source.captured())
        know(source, OLD, "a", ShardPosition("orders", "1", finished=True))
        for _ in range(2):
            await source._discovery.list("orders", OLD)
            found.append(source.captured())
        return found

    assert asyncio.run(scenario()) == [set(), set(), {"orders"}]


def test_a_table_that_another_source_captures_is_not_this_one_s() -> None:
    source = a_source()
    know(source, OLD, "", Beginning("orders"))
    assert source.captured() == set()


def test_items_that_were_remembered_in_the_slice_of_the_end_are_dropped_as_well(tmp_path: Path) -> None:
    written = SimpleNamespace(produce=lambda *_args, **_more: None)
    transport = cast("Transport", SimpleNamespace(participants=[], log_of=lambda _: UNKNOWN, transaction=written))
    delivered = Delivered(transport, "ingest", "delivered", tmp_path)
    delivered._sends = False
    part = TablePartition(tmp_path / "0.db")
    delivered.all = {0: part}
    change = (
        b'{"eventSourceARN":"%s","eventID":"e","eventName":"MODIFY","dynamodb":{"Keys":{"id":{"S":"x"}}}}'
        % OLD.encode()
    )

    def one_slice(*records: tuple[bytes | None, bytes]) -> None:
        admit(records, delivered.memory(0))
        work = Slice(cast("Any", None))
        delivered.finish(work)
        delivered.committed(work)

    begin, end = ((None, mark("orders", "s1", what)) for what in (BEGIN, END))
    one_slice(begin)
    one_slice((b"x", change), (b"y", change), end)
    while delivered.due():
        one_slice()
    assert list(part) == [b"state"]
    part.close()


def test_a_snapshot_s_export_is_no_other_s() -> None:
    """The first snapshot of a table has the same ID in each deployment: AWS would answer an export that is too old."""
    one = Snapshot("orders", "initial", 1, state="running", asked=1.0, began=2.0)
    assert token(one) == token(msgspec.structs.replace(one, state="running"))
    assert token(one) != token(msgspec.structs.replace(one, began=3.0))
