"""The lake writes every record once: whatever fails when, and with a zombie at work."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future

import pyarrow.parquet as pq
from confluent_kafka import Producer
from faust.types import TP
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import TransientError
from pipeline.metrics import Metrics
from pipeline.sinks.parquet import Lake, Row, Written, encode, end_of
from pipeline.transport import Slice

PARTITION = TP("p.sink.s", 0)
NOBODY = Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})


class Bucket:
    """A bucket with conditional puts, that fails when it is told to."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fail = False

    def create(self, path: str, content: bytes) -> bool:
        if self.fail:
            raise TransientError("slow down")
        if path in self.objects:
            return False
        self.objects[path] = content
        return True

    def read(self, path: str) -> bytes:
        return self.objects[path]

    def offsets(self) -> list[int]:
        found = []
        for path in sorted(self.objects):
            found += pq.read_table(io.BytesIO(self.objects[path])).column("offset").to_pylist()
        return found


def row(offset: int) -> Row:
    return Row(f"e{offset}", "t", "c", "dynamodb-stream", 0, "", "k", None, "{}", None, 0, offset)


class Owner:
    """A worker with its own lake: reads from the committed offset on, slice by slice."""

    def __init__(self, bucket: Bucket, topic: list[int], start: int) -> None:
        self.now = 0.0
        self.lake = Lake(
            bucket,  # type: ignore[arg-type]
            {"s": PARTITION.topic},
            Metrics(),
            max_rows=6,
            max_age=5,
            submit=self.submit,
            hold=lambda _tp, _held: None,
            clock=lambda: self.now,
        )
        self.slow: list[tuple[Future[Written], Callable[..., Written], tuple[object, ...]]] = []
        self.topic, self.at = topic, start
        self.again: list[int] = []

    def submit(self, write: Callable[..., Written], *arguments: object) -> Future[Written]:
        """Take an upload on; it happens when `upload` is called."""
        future: Future[Written] = Future()
        self.slow.append((future, write, arguments))
        return future

    def upload(self) -> None:
        for future, write, arguments in self.slow:
            try:
                future.set_result(write(*arguments))
            except TransientError as error:
                future.set_exception(error)
        self.slow.clear()

    def slice(self, records: int, *, refused: bool) -> int | None:
        """Run one slice; return the offset it commits, None when it commits none or is refused."""
        fresh = [offset for offset in self.topic if offset >= self.at][:records]
        delivered = self.again + fresh
        work = Slice(NOBODY, (), {PARTITION: delivered[-1] + 1} if delivered else {})
        if delivered:
            self.lake.add(PARTITION, [row(offset) for offset in delivered], delivered[-1] + 1)
            self.at = delivered[-1] + 1
        self.lake.finish(work)
        if refused:
            self.lake.aborted(work)
            self.again = delivered
            return None
        self.lake.committed(work)
        self.again = []
        return work.offsets.get(PARTITION)


step = st.tuples(
    st.sampled_from(["slice", "refused", "upload", "fail", "restart", "zombie", "wait"]),
    st.integers(min_value=0, max_value=5),
)


FOUND_LONGER_THAN_READ = [
    *[("slice", 5), ("slice", 5), ("restart", 0), ("zombie", 0)],  # a zombie writes a file of ten ...
    *[
        ("slice", 2),
        ("wait", 0),
        ("upload", 0),
        ("slice", 0),
        ("slice", 3),
        ("wait", 0),
        ("upload", 0),
    ],  # and its heir has read two of them
]


@settings(max_examples=400, deadline=None)
@example(FOUND_LONGER_THAN_READ, set())
@given(st.lists(step, max_size=60), st.sets(st.integers(min_value=1, max_value=60)))
def test_every_record_is_in_one_file_whatever_fails(steps: list[tuple[str, int]], gaps: set[int]) -> None:
    topic = [offset for offset in range(60) if offset not in gaps]  # gaps: the ends of transactions
    bucket, committed = Bucket(), 0
    owner = zombie = Owner(bucket, topic, 0)
    for action, records in steps:
        bucket.fail = action == "fail"
        if action in {"upload", "fail"}:
            owner.upload()
        elif action == "restart":
            zombie, owner = owner, Owner(bucket, topic, committed)
        elif action == "zombie":
            zombie.now += 10  # what it does is never committed: the broker refuses it
            if zombie is not owner:
                zombie.slice(records, refused=True)
                zombie.upload()
        else:
            owner.now += 10 if action == "wait" else 1
            offset = owner.slice(records, refused=action == "refused")
            assert offset is None or offset >= committed, "an offset never goes back"
            committed = committed if offset is None else offset
    bucket.fail = False
    owner = Owner(bucket, topic, committed)
    for _ in range(80):
        owner.now += 100
        owner.slice(5, refused=False)
        owner.upload()
    assert sorted(bucket.offsets()) == topic


def test_a_file_says_where_it_ends() -> None:
    content = encode([row(3), row(4)], 6)
    assert end_of(content) == 6
    table = pq.read_table(io.BytesIO(content))
    assert table.column("offset").to_pylist() == [3, 4]
    assert table.column("event_id").to_pylist() == ["e3", "e4"]
