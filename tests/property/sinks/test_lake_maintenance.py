"""Maintenance may end anywhere, meet another run or a worker at any moment: readers see each row once, and no row is lost."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sink_worker import LOG, OTHER_LOG, PARTITION, Clock, Killed, Killer, Owner
from test_lake_faults import record

from pipeline.sinks.lake import manifests
from pipeline.sinks.lake.compact import Compacted, compact
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.objects import Objects, StoredObject
from pipeline.sinks.lake.sink import LakeSink, Rotation
from pipeline.sinks.lake.verify import verify_lake
from pipeline.transport.committed import Committed
from pipeline.transport.logs import Log

pytestmark = pytest.mark.slow

ROWS = 24
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Bucket:
    """A bucket with conditional puts; before and after each of its operations something may happen."""

    url = "memory:"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, datetime] = {}
        self.killer = Killer()
        self.operations = 0
        self.at: tuple[int, Callable[[], object]] | None = None
        """What happens before which operation."""
        for name in ("create", "change", "find", "listed", "delete"):
            setattr(self, name, self._watched(self.killer.wrap(getattr(self, f"_{name}"))))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            if self.at is not None and self.operations == self.at[0]:
                (_, happens), self.at = self.at, None
                happens()
            self.operations += 1
            return call(*arguments)

        return watched

    def _create(self, path: str, content: bytes) -> bool:
        if path in self.objects:
            return False
        self.objects[path] = content
        return True

    def _change(self, path: str, change: Callable[[bytes | None], bytes | None]) -> None:
        if (new := change(self.objects.get(path))) is not None:
            self.objects[path] = new

    def _find(self, path: str) -> bytes | None:
        return self.objects.get(path)

    def _listed(self, prefix: str = "") -> list[StoredObject]:
        return [
            StoredObject(path, len(content), self.modified.get(path, datetime.now(UTC)))
            for path, content in sorted(self.objects.items())
            if not prefix or path.startswith(f"{prefix}/")
        ]

    def _delete(self, path: str) -> None:
        self.objects.pop(path, None)

    def read(self, path: str) -> bytes:
        return cast("bytes", cast("Any", self).find(path))

    def exists(self, path: str) -> bool:
        return path in self.objects

    def find_all(self, paths: Iterable[str]) -> dict[str, bytes | None]:
        return {path: cast("Any", self).find(path) for path in paths}

    def delete_all(self, paths: Iterable[str]) -> None:
        for path in paths:
            cast("Any", self).delete(path)

    def paths(self, prefix: str = "") -> list[str]:
        return [one.path for one in cast("Any", self).listed(prefix)]

    @property
    def files(self) -> list[str]:
        return [path for path in sorted(self.objects) if path.endswith(".parquet")]


def as_objects(bucket: Bucket) -> Objects:
    return cast("Objects", bucket)


def owner(bucket: Bucket, start: int = 0, max_rows: int = 2, rows: int = ROWS, **more: Any) -> Owner:
    def lake(clock: Clock) -> LakeSink:
        return LakeSink(
            as_objects(bucket),
            EnvelopeLayout(),
            {"s": PARTITION.topic},
            Rotation(max_rows, 1 << 20, 5, 0),
            path="table={table}/hour={hour}",
            clock=clock,
        )

    # Files of a flush are in two directories.
    return Owner(lake, {n: record(n, n % 3 // 2) for n in range(rows)}, start, **more)


def carry(one: Owner, until: int) -> int:
    """Carry records up to an offset."""
    committed = 0
    while committed < until:
        committed = one.slice(min(2, until - one.at)) or committed
        one.work()
        one.clock.now += 100
    return committed


def tend(bucket: Bucket, committed: int = ROWS, size: int = 1 << 20, log: Log = LOG) -> list[Compacted]:
    return list(
        compact(
            as_objects(bucket), lambda _t, _p: committed, size=size, older_than_us=1 << 60, log_of=lambda _topic: log
        )
    )


def listed_rows(bucket: Bucket) -> list[int]:
    """Return the offsets of the rows that a reader sees, who goes by what is listed."""
    files = [file for read_manifest in manifests.read_manifests(as_objects(bucket)) for file in read_manifest.files]
    return sorted(
        offset
        for file in files
        for offset in pq.read_table(io.BytesIO(bucket.objects[file.path])).column("offset").to_pylist()
    )


def unlisted(bucket: Bucket) -> set[str]:
    found = manifests.read_manifests(as_objects(bucket))
    return set(bucket.files) - {file.path for one in found for file in one.files}


def require_right(bucket: Bucket, rows: int = ROWS) -> None:
    """Each row is listed once, and nothing is left over."""
    assert listed_rows(bucket) == list(range(rows))
    assert verify_lake(as_objects(bucket)).problems == ()


def test_maintenance_leaves_a_file_a_directory_and_no_entries() -> None:
    bucket = Bucket()
    carry(owner(bucket), ROWS)
    before = len(bucket.files)
    done = tend(bucket)
    require_right(bucket)
    assert (sum(one.before for one in done), sum(one.after for one in done)) == (before, 2)
    assert not any(path.startswith("_manifests/") for path in bucket.objects)
    assert tend(bucket) == []


@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_ends_anywhere_loses_and_doubles_nothing_and_the_next_one_finishes_it(after: bool) -> None:
    """Two rounds: the second puts the large files of the first into larger ones."""
    call = 0
    while True:
        bucket = Bucket()
        worker = owner(bucket)
        killed = False
        for until in (10, ROWS):
            carry(worker, until)
            bucket.killer.plan(call, after=after)
            try:
                tend(bucket, until)
            except Killed:
                killed = True
            bucket.killer.plan(-1, after=False)
            assert listed_rows(bucket) == list(range(until))
        tend(bucket)
        for path in unlisted(bucket):
            assert "compacted-" in path, "what was written before the run ended; it goes after a day"
            bucket.modified[path] = LONG_AGO
        tend(bucket)
        require_right(bucket)
        assert len(bucket.files) == 2
        assert not any(path.startswith("_manifests/") for path in bucket.objects)
        if not killed:
            assert call > 20
            return
        call += 1


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.booleans(),
    st.sampled_from([1, 6_400, 12_800, 1 << 20]),
    st.integers(0, 60),
)
def test_two_runs_at_once_without_a_lease_lose_and_double_nothing(
    begins: int, dies: int, is_killed: bool, size: int, again: int
) -> None:
    """The lease may run out while its holder is frozen: what is written rests on what is there alone."""
    bucket = Bucket()
    worker = owner(bucket)
    carry(worker, 12)
    tend(bucket, 12, 7_000)  # two files of a flush
    carry(worker, ROWS)

    def other() -> None:
        if is_killed:
            bucket.killer.plan(dies, after=False)
        try:
            tend(bucket, ROWS, size)
        except Killed:
            pass
        finally:
            bucket.killer.plan(-1, after=False)
        assert listed_rows(bucket) == list(range(ROWS))

    bucket.at = (bucket.operations + begins, other)
    tend(bucket, ROWS, 8_500)
    bucket.at = None
    assert listed_rows(bucket) == list(range(ROWS))
    bucket.at = (bucket.operations + again, other)
    tend(bucket)
    bucket.at = None
    tend(bucket)
    assert listed_rows(bucket) == list(range(ROWS))
    assert {problem.what for problem in verify_lake(as_objects(bucket)).problems} <= {"not listed"}
    assert all("compacted-" in path for path in unlisted(bucket)), "what a run could not list; it goes after a day"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60))
def test_a_reader_sees_each_row_once_whatever_maintenance_does_meanwhile(moment: int) -> None:
    bucket = Bucket()
    carry(owner(bucket), ROWS)
    bucket.at = (bucket.operations + moment, lambda: tend(bucket))
    found = manifests.read_manifests(as_objects(bucket))
    firsts = Counter(origin.first for one in found for file in one.files for origin in file.origins)
    assert set(firsts.values()) == {1}
    assert sum(one.rows for one in found) == ROWS
    bucket = Bucket()
    carry(owner(bucket), ROWS)
    bucket.at = (bucket.operations + moment, lambda: tend(bucket))
    assert verify_lake(as_objects(bucket)).problems == ()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 40), st.integers(0, 30), st.booleans())
def test_a_worker_that_writes_and_dies_meanwhile_loses_and_doubles_nothing(begins: int, dies: int, after: bool) -> None:
    bucket = Bucket()
    worker = owner(bucket)
    committed = carry(worker, 10)

    def works() -> None:
        nonlocal committed
        bucket.killer.plan(dies, after=after)
        try:
            while committed < 16:
                committed = worker.slice(2) or committed
                worker.work()
                worker.clock.now += 100
        except Killed:
            pass
        finally:
            bucket.killer.plan(-1, after=False)

    bucket.at = (bucket.operations + begins, works)
    tend(bucket, committed)
    bucket.at = None
    tend(bucket, committed)
    carry(owner(bucket, committed), ROWS)
    tend(bucket)
    require_right(bucket)


# -- what is left over, and what only looks like it -------------------------------------------------------------------


def test_files_and_entries_that_a_worker_writes_once_more_are_not_seen_and_go() -> None:
    bucket = Bucket()
    carry(owner(bucket), ROWS)
    former = dict(bucket.objects)
    tend(bucket)
    bucket.objects = former | bucket.objects
    assert listed_rows(bucket) == list(range(ROWS))
    assert {problem.what for problem in verify_lake(as_objects(bucket)).problems} == {"not listed"}
    tend(bucket, committed=0)
    assert set(former) - set(bucket.objects) <= {path for path in former if path.startswith("_manifests/")}
    tend(bucket)
    require_right(bucket)
    assert len(bucket.files) == 2


def test_a_file_that_nothing_lists_goes_only_if_all_its_rows_are_elsewhere() -> None:
    bucket = Bucket()
    carry(owner(bucket), ROWS)
    path = next(path for path in bucket.files if path.endswith(f"{0:020d}.parquet"))
    stray = path.replace(f"{0:020d}", f"{1:020d}")  # of a range that begins elsewhere; its rows are those of the other
    bucket.objects[stray] = bucket.objects[path]
    tend(bucket, committed=0)
    assert stray in bucket.objects, "a flush of it may be under way"
    del bucket.objects[manifests.entry_of(path)]  # somebody has deleted it
    done = tend(bucket, size=1)
    assert {path, stray} <= set(bucket.objects)
    assert sorted(left.partition(":")[0] for one in done for left in one.left) == sorted([path, stray])
    file = Bucket()
    carry(owner(file), ROWS)
    bucket.objects[manifests.entry_of(path)] = file.objects[manifests.entry_of(path)]
    done = tend(bucket, size=1)
    assert stray not in bucket.objects
    assert path in bucket.objects
    require_right(bucket)


def test_a_large_file_that_nothing_lists_goes_after_a_day() -> None:
    bucket = Bucket()
    carry(owner(bucket), ROWS)
    tend(bucket)
    bucket.objects["table=T/hour=00/compacted-x.parquet"] = b"PAR1"
    tend(bucket)
    assert "table=T/hour=00/compacted-x.parquet" in bucket.objects
    bucket.modified["table=T/hour=00/compacted-x.parquet"] = datetime.now(UTC) - timedelta(hours=25)
    tend(bucket)
    require_right(bucket)


def test_rows_that_are_read_again_since_kafka_has_forgotten_the_offset_are_not_lost() -> None:
    """The files of the first time were merged: those of the second may reach further, and are listed then."""
    bucket = Bucket()
    carry(owner(bucket, rows=10), 10)
    tend(bucket, 10)
    one = owner(bucket, max_rows=ROWS, committed=Committed(None))
    committed = None
    while committed != ROWS:
        committed = one.slice(8)
        one.work()
    assert set(listed_rows(bucket)) == set(range(ROWS))
    tend(bucket)
    assert set(listed_rows(bucket)) == set(range(ROWS))


def test_a_recreated_topic_is_maintained_beside_the_former_one() -> None:
    bucket = Bucket()
    carry(owner(bucket), ROWS)
    tend(bucket)
    carry(owner(bucket, log=OTHER_LOG, committed=Committed(ROWS, LOG)), ROWS)
    assert listed_rows(bucket) == sorted([*range(ROWS), *range(ROWS)])
    tend(bucket, log=OTHER_LOG)
    assert listed_rows(bucket) == sorted([*range(ROWS), *range(ROWS)])
    assert verify_lake(as_objects(bucket)).problems == ()
    assert len(bucket.files) == 2


def test_a_manifest_of_the_version_before_is_read_and_taken_over() -> None:
    bucket = Bucket()
    carry(owner(bucket), 10)
    directories: dict[str, list[manifests.File]] = {}
    for read_manifest in manifests.read_manifests(as_objects(bucket)):
        directories[read_manifest.directory] = read_manifest.files
    for path in bucket.paths("_manifests"):
        del bucket.objects[path]
    for directory, files in directories.items():
        manifests.exchange(as_objects(bucket), directory, added=files)  # as that version has listed them
    was = {path: content for path, content in bucket.objects.items() if manifests.is_manifest(path)}
    carry(owner(bucket, 10), ROWS)
    assert {path: content for path, content in bucket.objects.items() if manifests.is_manifest(path)} == was
    require_right(bucket)
    tend(bucket)
    require_right(bucket)
    assert len(bucket.files) == 2


def test_rows_that_were_merged_and_come_again_because_kafka_forgot_the_offset_are_not_lost_in_silence() -> None:
    """Only the directory of the first hour is merged: a longer range finds a file of a shorter one under its name."""
    bucket = Bucket()
    carry(owner(bucket, rows=10), 10)
    merged = compact(
        as_objects(bucket), lambda _t, _p: 10, size=1 << 20, older_than_us=1_000_000, log_of=lambda _topic: LOG
    )
    assert [one.directory for one in merged] == ["table=T/hour=00"]
    again = owner(bucket, max_rows=ROWS, committed=Committed(None))
    for _ in range(5):
        again.slice(8)
        again.work()
    assert any("Kafka has forgotten it" in str(error) for error in again.fatal)
