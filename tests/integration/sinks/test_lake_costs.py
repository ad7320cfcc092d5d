"""What a lake costs (docs/how-to/what-a-lake-costs.md), counted at a real store; its upkeep beside running workers."""

from __future__ import annotations

import io
import json
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Message
from conftest import Headwater
from faust.types import TP
from support.sink_worker import LOG, Owner
from support.troubled_store import TroubledStore, troubled_store
from support.waiting import until
from test_recreated_topics import Lake, once

from headwater.lab.stack import Endpoints
from pipeline.errors import TransientError
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.maintain import maintain_lake
from pipeline.sinks.lake.manifests import read_manifests
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.sink import LakeSink, Rotation
from pipeline.sinks.lake.verify import Carried, verify_lake
from pipeline.transport.committed import Committed

pytestmark = pytest.mark.kafka
TOPIC, PATH = "headwater.sink.orders", "table={table}/date={date}/hour={hour}"


def near(counted: float, formula: float) -> bool:
    """Say whether a formula is right within 5 %."""
    return abs(counted - formula) <= 0.05 * formula


# The formulas of the page. P: partitions, F: flushes of a partition, D: directories of a flush, R: rows.
ENTRY = 450
"""Bytes of an entry beside the path of its file."""


def puts(p: int, f: int, d: int) -> int:
    return 2 * p * f * d + p


def gets(p: int) -> int:
    """HEADs, of partitions that are taken over; S3 bills them as GETs."""
    return 3 * p


def written(p: int, f: int, d: int, rows: int, *, of_file: float, of_row: float, path: int) -> float:
    return rows * of_row + p * f * d * (of_file + ENTRY + path)


@pytest.fixture
def store(kafka_stack: Endpoints, monkeypatch: pytest.MonkeyPatch) -> Iterator[TroubledStore]:
    """S3's stand-in behind a proxy that counts real requests."""
    for name, value in kafka_stack.environment().items():
        monkeypatch.setenv(name, value)
    with troubled_store(kafka_stack.s3_endpoint_url, every=0) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", made.url)
        yield made


def bucket() -> str:
    name = f"lake-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return f"s3://{name}/files"


def record(partition: int, offset: int, hours: int) -> Message:
    chance = random.Random(offset)  # noqa: S311 - the same sizes each time
    keys = {"id": {"S": f"customer-{chance.randrange(10**9)}"}}
    body = {
        "Keys": keys,
        "NewImage": {**keys, "note": {"S": f"{chance.getrandbits(800):x}"}},
        "SequenceNumber": f"{4 * 10**37 + offset}",
        "ApproximateCreationDateTime": 1_764_000_000 + 3_600 * (offset % hours),
    }
    value = {"eventID": f"{partition:08x}{offset:024x}", "eventName": "MODIFY", "tableName": "orders", "dynamodb": body}
    key = json.dumps(keys).encode()
    return Message(TOPIC, partition, offset=offset, key=key, value=json.dumps(value).encode(), timestamp=(1, offset))


def run(objects: Objects, p: int, f: int, d: int, rows_of_flush: int) -> None:
    """Have the real sink write so many flushes of each partition."""
    for partition in range(p):
        topic = {n: record(partition, n, d) for n in range(f * rows_of_flush)}
        owner = Owner(
            lambda clock: LakeSink(
                objects,
                EnvelopeLayout(),
                {"orders": TOPIC},
                Rotation(rows_of_flush, 1 << 27, 60, 0),
                path=PATH,
                clock=clock,
            ),
            topic,
            0,
            TP(TOPIC, partition),
        )
        committed = 0
        while committed < len(topic):
            committed = owner.slice(rows_of_flush) or committed
            owner.work()


def bytes_of_a_file(small: int = 500, large: int = 4_000) -> tuple[float, float]:
    """Return bytes of a file beside its rows, and of a row: measured as the page says, by two files."""
    sizes = []
    for rows in (small, large):
        objects = Objects(bucket())
        run(objects, 1, 1, 1, rows)
        sizes.append(sum(file.bytes for found in read_manifests(objects) for file in found.files))
    of_row = (sizes[1] - sizes[0]) / (large - small)
    return sizes[0] - small * of_row, of_row


def test_workers_cost_what_the_formula_says(store: TroubledStore) -> None:
    of_file, of_row = bytes_of_a_file()
    p, f, d, rows = 4, 6, 2, 2_000
    objects, before = Objects(bucket()), Counter(store.done)
    run(objects, p, f, d, rows)
    real, counted = Counter(store.done) - before, objects.requests
    (some, *_) = read_manifests(Objects(objects.url))
    path = len(some.files[0].path)
    assert near(counted.put, puts(p, f, d))
    assert near(counted.get + counted.head, gets(p))
    assert (counted.list, counted.delete) == (0, 0)
    assert (real["PUT"], real["GET"] + real["HEAD"]) == (counted.put, counted.get + counted.head)
    assert near(counted.bytes_out, written(p, f, d, p * f * rows, of_file=of_file, of_row=of_row, path=path))
    assert verify_lake(Objects(objects.url)).rows == p * f * rows


def test_upkeep_costs_what_the_formula_says(store: TroubledStore) -> None:
    p, f, d, rows = 4, 10, 3, 300
    written_by = Objects(bucket())
    run(written_by, p, f, d, rows)
    files, size = p * f * d, sum(file.bytes for found in read_manifests(written_by) for file in found.files)
    entries = written_by.requests.bytes_out - size
    objects, before = Objects(written_by.url), Counter(store.done)
    known = [Carried(TOPIC, n, LOG, 0, Committed(f * rows, LOG)) for n in range(p)]
    report = maintain_lake(objects, "lake", known, size=128 << 20, older_than_us=1 << 60)
    real = Counter(store.done) - before
    assert (report.files_before, report.files_after, report.rows) == (files, d, p * f * rows)
    asked = report.requests
    assert near(asked.get, 2 * files + d + 2)
    assert asked.put == 2 * d + 2
    assert asked.list == 1
    assert asked.delete == 2 * d
    assert near(asked.bytes_in, size + entries)
    listed = sum(file.bytes for found in read_manifests(written_by) for file in found.files)
    assert near(asked.bytes_out, listed + files * 170 + 2 * d * 300)
    assert (real["PUT"], real["GET"]) == (asked.put, asked.get + asked.list)
    assert real["POST"] + real["DELETE"] == asked.delete
    assert verify_lake(written_by).problems == ()
    again = maintain_lake(Objects(written_by.url), "lake", known, size=128 << 20, older_than_us=1 << 60).requests
    assert (again.get, again.put, again.list, again.delete) == (2, 2, 1, 0), "nothing but the lease and a listing"


def test_an_error_of_s3_is_one_line_with_its_cause(store: TroubledStore) -> None:
    objects = Objects("s3://there-is-no-such-bucket/lake")
    with pytest.raises(TransientError) as raised:
        objects.create("table=T/a.parquet", b"x")
    assert "NoSuchBucket" in str(raised.value)
    assert "<" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_lakes_are_maintained_while_workers_write_and_die(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    lake = Lake(kafka_stack, tmp_path, HEADWATER_LAKE__MAX_AGE="0.2")
    (tmp_path / "second").mkdir()
    second = [{"name": "second", "url": f"file://{tmp_path}/second"}]  # nobody runs it
    lake.fleet.settings = {**lake.fleet.settings, "HEADWATER_LAKES": json.dumps(second)}
    command = ("lake", "maintain", "--older-than", "0", "--json")

    def maintained() -> list[dict[str, object]]:
        done = headwater(*command, **lake.fleet.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with lake.fleet.running(2) as workers:
        written, merged = 0, 0
        for part in range(4):
            lake.write(f"part{part}-", 40, hour=part % 2)
            written += 40
            if part == 1:
                workers.kill(0)
                workers.watch()
            until(lambda written=written: lake.rows() >= written, "rows")  # type: ignore[misc]
            first, other = maintained()
            assert (first["lake"], other["lake"], other["files_before"]) == ("lake", "second", 0)
            merged += int(str(first["files_before"])) - int(str(first["files_after"]))
        until(lambda: lake.is_carried(written, written), "all rows")
    maintained()
    assert merged > 0
    objects = Objects(lake.url)
    files = [objects.read(path) for path in objects.paths() if path.endswith(".parquet")]
    events = [event for file in files for event in pq.read_table(io.BytesIO(file)).column("event_id").to_pylist()]
    assert Counter(events) == sum((once(f"part{part}-", 40) for part in range(4)), Counter())
    assert lake.verify(headwater, 0, "--lake", "lake") == []
    assert len(files) == 2, "a file an hour"
