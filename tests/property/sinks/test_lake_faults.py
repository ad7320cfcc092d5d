"""The lake writes every change once: whatever fails when, wherever the process is killed, and with a zombie at work."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from typing import cast

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Message
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.sink_worker import LOG, PARTITION, Clock, Killed, Killer, Owner

from pipeline.errors import TransientError
from pipeline.sinks.lake import manifests
from pipeline.sinks.lake.layouts import Layout
from pipeline.sinks.lake.layouts.columns import ColumnsLayout, TableSchema
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.sink import LakeSink, Rotation

pytestmark = pytest.mark.slow

HOUR = 3600


class Bucket:
    """A bucket with conditional puts, that fails when it is told to."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.killer = Killer()
        for name in ("create", "change", "read", "exists"):
            setattr(self, name, self.killer.wrap(getattr(self, f"_{name}")))

    def _create(self, path: str, content: bytes) -> bool:
        if path in self.objects:
            return False
        self.objects[path] = content
        return True

    def _change(self, path: str, change: Callable[[bytes | None], bytes | None]) -> None:
        if (new := change(self.objects.get(path))) is not None:
            self.objects[path] = new

    def _read(self, path: str) -> bytes:
        return self.objects[path]

    def _exists(self, path: str) -> bool:
        return path in self.objects

    def rows(self, column: str) -> list[object]:
        found = []
        for path in sorted(self.objects):
            if path.endswith(".parquet"):
                found += pq.read_table(io.BytesIO(self.objects[path])).column(column).to_pylist()
        return found

    def paths(self, prefix: str = "") -> list[str]:
        return sorted(path for path in self.objects if not prefix or path.startswith(f"{prefix}/"))

    def find_all(self, paths: Iterable[str]) -> dict[str, bytes | None]:
        return {path: self.objects.get(path) for path in paths}

    def listed(self) -> dict[str, manifests.File]:
        """Return the files that are listed."""
        found = manifests.read_manifests(cast("Objects", self))
        return {file.path: file for manifest in found for file in manifest.files}


def record(offset: int, hour: int = 0, item: str = '{"k":{"S":"1"}}') -> Message:
    value = {
        "eventID": f"e{offset}",
        "eventName": "INSERT",
        "eventSourceARN": "arn:aws:dynamodb:eu-west-1:1:table/T/stream/x",
        "dynamodb": {
            "Keys": {"k": {"S": "1"}},
            "NewImage": json.loads(item),
            "SequenceNumber": str(offset),
            "ApproximateCreationDateTime": hour * HOUR,
        },
    }
    return Message(*PARTITION, offset=offset, key=b"k", value=json.dumps(value).encode(), timestamp=(1, offset))


def columns() -> ColumnsLayout:
    schemas: dict[str, TableSchema] = {}

    def grow(table: str, schema: TableSchema) -> TableSchema:
        schemas[table] = schemas.get(table, TableSchema()).merge(schema)
        return schemas[table]

    return ColumnsLayout(lambda table: schemas.get(table, TableSchema()), grow)


def lake(bucket: Bucket, layout: Layout, max_rows: int = 6) -> Callable[[Clock], LakeSink]:
    return lambda clock: LakeSink(
        bucket,  # type: ignore[arg-type]
        layout,
        {"s": PARTITION.topic},
        Rotation(max_rows, 1 << 20, 5, 0),
        path="table={table}/hour={hour}",
        clock=clock,
    )


step = st.tuples(
    st.sampled_from(["slice", "refused", "work", "fail", "kill", "restart", "zombie", "wait"]),
    st.integers(min_value=0, max_value=5),
)


FOUND_LONGER_THAN_READ = [
    *[("slice", 5), ("slice", 5), ("work", 0), ("restart", 0), ("zombie", 0)],  # a zombie writes files of ten ...
    *[("slice", 2), ("wait", 0), ("work", 0), ("slice", 0), ("slice", 3), ("wait", 0), ("work", 0)],  # ... two are read
]

FOUND_SHORTER_THAN_CLOSED = [("slice", 1), ("slice", 5), ("slice", 5), ("work", 0), ("slice", 4), ("kill", 1)]
"""Killed after the first of two files: the next owner has closed its own, finds the range that was begun, and does it again."""


@pytest.mark.parametrize("make", [EnvelopeLayout, columns])
@settings(max_examples=100, deadline=None)
@example(FOUND_LONGER_THAN_READ, set(), [0], True)
@example(FOUND_SHORTER_THAN_CLOSED, set(), [0, 0, 0, 1, 0, 0], False)
@given(
    st.lists(step, max_size=60),
    st.sets(st.integers(min_value=1, max_value=60)),
    st.lists(st.integers(min_value=0, max_value=2), min_size=1, max_size=7),
    st.booleans(),
)
def test_every_change_is_in_one_file_whatever_fails(
    make: Callable[[], Layout], steps: list[tuple[str, int]], gaps: set[int], hours: list[int], starts_again: bool
) -> None:
    topic = {o: record(o, hours[o % len(hours)]) for o in range(60) if o not in gaps}  # gaps: ends of transactions
    bucket, committed = Bucket(), 0
    sink = lake(bucket, make())
    owner = zombie = Owner(sink, topic, 0)
    for action, number in steps:
        bucket.killer.plan(-1, after=False)
        if action in {"work", "fail", "kill"}:
            if action != "work":
                error = TransientError("slow down") if action == "fail" else None
                bucket.killer.plan(number // 2, after=number % 2 == 1, error=error)
            try:
                owner.work()
            except Killed:
                owner = Owner(sink, topic, committed)
        elif action == "restart":
            zombie, owner = owner, Owner(sink, topic, committed)
        elif action == "zombie":
            zombie.clock.now += 10  # what it does is never committed: the broker refuses it
            if zombie is not owner:
                zombie.slice(number, refused=True)
                zombie.work()
        else:
            owner.clock.now += 10 if action == "wait" else 1
            offset = owner.slice(number, refused=action == "refused")
            assert offset is None or offset >= committed, "an offset never goes back"
            committed = committed if offset is None else offset
        assert not owner.fatal
    bucket.killer.plan(-1, after=False)
    if starts_again:
        owner = Owner(sink, topic, committed)
    for _ in range(80):
        owner.clock.now += 100
        committed = owner.slice(5) or committed
        owner.work()
    assert sorted(bucket.rows(f"{make().prefix}offset")) == sorted(topic)  # type: ignore[type-var]
    assert committed == max(topic) + 1
    files = {path for path in bucket.objects if path.endswith(".parquet")}
    assert set(bucket.listed()) == files
    assert sum(file.rows for file in bucket.listed().values()) == len(topic)
    for path, file in bucket.listed().items():
        assert file.sha256 == hashlib.sha256(bucket.objects[path]).hexdigest()


def test_a_file_is_closed_when_it_is_old_although_nothing_comes() -> None:
    bucket = Bucket()
    owner = Owner(lake(bucket, EnvelopeLayout()), {0: record(0), 1: record(1, 2)}, 0)
    assert owner.slice(5) is None
    owner.work()
    owner.clock.now += 4
    assert not bucket.objects
    assert not owner.runner.due() or owner.slice(0) is None
    owner.clock.now += 2
    assert owner.runner.due()
    owner.slice(0)
    owner.work()
    assert owner.slice(0) == 2
    assert sorted(path for path in bucket.objects if path.endswith(".parquet")) == [
        f"table=T/hour=00/p.sink.s+{LOG.topic_id}+0+00000000000000000000.parquet",
        f"table=T/hour=02/p.sink.s+{LOG.topic_id}+0+00000000000000000001.parquet",
    ]


def test_what_is_not_a_change_is_rejected_when_the_offset_passes_it() -> None:
    bucket = Bucket()
    bad = Message(*PARTITION, offset=1, key=b"k", value=b"{", timestamp=(1, 1))
    owner = Owner(lake(bucket, EnvelopeLayout()), {0: record(0), 1: bad, 2: record(2)}, 0)
    owner.slice(5)
    owner.work()
    owner.slice(0)
    assert not owner.rejected
    owner.clock.now += 10
    owner.slice(0)
    owner.work()
    assert owner.slice(0) == 3
    assert [offset for offset, _ in owner.rejected] == [1]
    assert sorted(bucket.rows("offset")) == [0, 2]  # type: ignore[type-var]


def test_the_largest_is_closed_when_memory_is_short() -> None:
    bucket = Bucket()

    def small(clock: Clock) -> LakeSink:
        sink = lake(bucket, EnvelopeLayout(), max_rows=1_000)(clock)
        sink.memory = 5_000
        return sink

    owner = Owner(small, {o: record(o) for o in range(20)}, 0)
    committed = None
    for _ in range(6):
        committed = owner.slice(5) or committed
        owner.work()
    assert committed is not None, "files were closed although neither rows nor age asked for it"
