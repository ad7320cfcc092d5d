"""Items that move from one sink to another, at destinations that take both, or one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Message
from support.compiled_flows import flow, run
from support.made_events import record
from support.sink_worker import PARTITION

from pipeline.settings.root import Settings
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.sink import LakeSink, Rotation
from pipeline.sinks.moves import Moves
from pipeline.sinks.rows import RowReader
from pipeline.topics.names import Topics

PAID = {"dynamodb": {"NewImage": {"status": {"S": ["paid"]}}}}
TO = [{"sink": "settled", "where": PAID}, {"sink": "other"}]


def messages_to(sink: str) -> list[Message]:
    """What a sink gets: an item comes, moves, comes back and is deleted."""
    items = [{"id": {"S": "a"}, "status": {"S": status}} for status in ("paid", "open", "paid")]
    records = [record(items[0]), record(items[1], items[0]), record(items[2], items[1]), record(None, items[2])]
    made = [message for result in run(flow(to=TO), *records) for message in result.messages if message.sink == sink]
    return [
        Message(*PARTITION, offset=offset, key=one.key, value=one.value, headers=list(one.headers))
        for offset, one in enumerate(made)
    ]


@pytest.mark.parametrize(
    ("sinks", "kept"),
    [
        (["settled"], ["c", "d", "u", "d"]),
        (["settled", "customers"], ["c", "d", "u", "d"]),
        (["settled", "other"], ["c", "u", "d"]),
    ],
)
def test_a_destination_of_both_sinks_keeps_the_item(sinks: Sequence[str], kept: list[str]) -> None:
    records = messages_to("settled")
    moves = Moves(sinks)
    ((rows, refused),) = RowReader().read(records)
    assert ([kind.op for kind in moves.without(rows).kinds], refused) == (kept, [])
    assert len(records) - sum(map(moves.stays, records)) == len(kept)


@pytest.mark.parametrize(
    ("path", "sinks", "ops"),
    [
        ("table={table}", {"settled": "p.sink.settled", "other": "p.sink.other"}, ["c", "u", "d"]),
        ("table={table}", {"settled": "p.sink.settled"}, ["c", "d", "u", "d"]),
        ("{sink}/{table}", {"settled": "p.sink.settled", "other": "p.sink.other"}, ["c", "d", "u", "d"]),
    ],
)
def test_a_lake_has_rows_of_what_left_it(tmp_path: Path, path: str, sinks: dict[str, str], ops: list[str]) -> None:
    rotation = Rotation(100, 1 << 20, 60, 0)
    lake = LakeSink(Objects(f"file://{tmp_path}"), EnvelopeLayout(), sinks, rotation, path=path, clock=lambda: 0.0)
    records = messages_to("settled")
    writer = lake.open(PARTITION._replace(topic="p.sink.settled"), 0)
    assert writer.add(records, len(records)) == []
    assert writer.flush().end == len(records)
    (file,) = tmp_path.rglob("*.parquet")
    assert pq.read_table(file).column("op").to_pylist() == ops


def test_sinks_with_tombstones_are_none_of_a_lake() -> None:
    def sinks(on_leave: str) -> list[str]:
        settings = Settings.model_validate({"flows": [{"name": "f", "to": TO, "on_leave": on_leave}]})
        return list(Topics(settings).lake_sinks)

    assert sinks("delete") == ["settled", "other"]
    assert sinks("tombstone") == []
