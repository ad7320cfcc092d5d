"""A sink topic that is recreated: a lake gets all of the new one, and `lake verify` says what it lacks."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer, TopicPartition
from conftest import Headwater
from support.fleet import Fleet
from support.waiting import until

from headwater.lab.recorder import lag
from headwater.lab.stack import Endpoints
from pipeline.sinks.lake.iceberg.sink import IcebergSink
from pipeline.sinks.lake.manifests import read_manifests
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.paths import origin_of
from pipeline.sinks.lake.sink import Rotation
from pipeline.topics.admin import admin, ensure

pytestmark = pytest.mark.kafka
FLOWS = json.dumps([{"name": "f", "from": ["orders"], "to": "orders"}])


class Lake:
    """A deployment whose sink `orders` goes to a lake."""

    def __init__(self, stack: Endpoints, directory: Path, **settings: str) -> None:
        self.url = f"file://{directory}/lake"
        self.fleet = Fleet(
            stack,
            directory,
            {
                "HEADWATER_AGENTS": '["lake"]',
                "HEADWATER_FLOWS": FLOWS,
                "HEADWATER_LAKE__URL": self.url,
                "HEADWATER_LAKE__MAX_AGE": "0.5",
                **settings,
            },
            partitions=2,
        )
        self.topic = f"{self.fleet.prefix}.sink.orders"
        self.make_topic()

    def make_topic(self) -> None:
        """Make the sink topic, anew if it is there."""
        client = admin(self.fleet.conf)
        if self.topic in client.list_topics(timeout=10).topics:
            client.delete_topics([self.topic], operation_timeout=20)[self.topic].result(20)
            until(lambda: self.topic not in client.list_topics(timeout=10).topics, "the topic gone")
        ensure(client, [self.fleet.topics.late(self.topic)], 1)

    def write(self, name: str, count: int, hour: int = 0) -> None:
        """Write changes to the sink topic, as a flow does."""
        producer = Producer(self.fleet.conf)
        for n in range(count):
            body = {
                "Keys": {"id": {"S": f"k{n % 6}"}},
                "NewImage": {"id": {"S": f"k{n % 6}"}, "n": {"N": str(n)}},
                "SequenceNumber": str(n + 1),
                "ApproximateCreationDateTime": 1_764_000_000 + 3_600 * hour,
            }
            value = {"eventID": f"{name}{n}", "eventName": "MODIFY", "tableName": "orders", "dynamodb": body}
            key = json.dumps(body["Keys"], separators=(",", ":")).encode()
            producer.produce(self.topic, json.dumps(value).encode(), key, n % 2)
        assert producer.flush(20) == 0

    def rows(self) -> int:
        return sum(manifest.rows for manifest in read_manifests(Objects(self.url)))

    def is_carried(self, rows: int, written: int) -> bool:
        """Say whether the lake has so many rows, and the group all that was written to the topic as it is now."""
        ends = {self.topic: dict.fromkeys(range(2), written // 2)}
        return self.rows() == rows and lag(self.fleet.conf, self.fleet.prefix, ends) == 0

    def events(self) -> Counter[str]:
        objects, found = Objects(self.url), Counter[str]()
        for path in objects.paths():
            if origin_of(path):
                found.update(pq.read_table(io.BytesIO(objects.read(path))).column("event_id").to_pylist())
        return found

    def verify(self, headwater: Headwater, expected: int, *more: str) -> list[dict[str, Any]]:
        done = headwater("lake", "verify", "--json", *more, **self.fleet.environment)
        assert done.returncode == expected, done.stdout + done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)["problems"]
        return found


def once(name: str, count: int) -> Counter[str]:
    return Counter(f"{name}{n}" for n in range(count))


def test_a_lake_gets_all_of_a_recreated_topic_and_is_compared_with_what_was_committed(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    lake = Lake(kafka_stack, tmp_path)
    lake.write("first", 40)
    with lake.fleet.running():
        until(lambda: lake.is_carried(40, 40), "all rows")
    lake.make_topic()
    lake.write("second", 60, hour=1)
    with lake.fleet.running():
        until(lambda: lake.is_carried(100, 60), "all rows of the new topic")
        lake.write("third", 10, hour=2)
        until(lambda: lake.is_carried(110, 70), "more of it")
    assert lake.events() == once("first", 40) + once("second", 60) + once("third", 10)
    assert lake.verify(headwater, 0) == []

    day = Path("source_table=orders") / "changed_date=2025-11-24"
    newest, entries = (
        tmp_path / "lake" / day / "changed_hour=18",
        tmp_path / "lake" / "_manifests" / day / "changed_hour=18",
    )
    shutil.move(newest, tmp_path / "kept")
    for more in ([], ["--offline"]):  # the entries are there
        told = [problem["detail"].split(" ", 1) for problem in lake.verify(headwater, 1, *more)]
        assert {words for _, words in told} == {"rows are not there"}
        assert sum(int(rows) for rows, _ in told) == 10
    shutil.move(entries, tmp_path / "kept entries")
    details = [problem["detail"] for problem in lake.verify(headwater, 1)]
    assert all("below the offset 35 that the group has committed" in detail for detail in details)
    assert len(details) == 2
    assert lake.verify(headwater, 0, "--offline") == []
    shutil.move(tmp_path / "kept", newest)
    shutil.move(tmp_path / "kept entries", entries)
    shutil.rmtree(newest.parent / "changed_hour=16")
    assert {problem["what"] for problem in lake.verify(headwater, 1)} == {"missing"}

    mistyped = headwater("lake", "verify", "--url", f"{lake.url}-no", **lake.fleet.environment)
    assert (mistyped.returncode, len(mistyped.stderr.splitlines())) == (1, 1)
    assert "there is no such directory" in mistyped.stderr


def test_a_lake_that_was_taken_away_is_missed_whole(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    lake = Lake(kafka_stack, tmp_path)
    lake.write("first", 10)
    with lake.fleet.running():
        until(lambda: lake.is_carried(10, 10), "all rows")
    shutil.rmtree(tmp_path / "lake")
    (tmp_path / "lake").mkdir()
    found = lake.verify(headwater, 1)
    assert [problem["detail"].split(",")[0] for problem in found] == ["offsets 0 to 4 are in no file"] * 2


def test_an_iceberg_table_gets_all_of_a_recreated_topic(kafka_stack: Endpoints, tmp_path: Path) -> None:
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/lake"}
    settings = {
        "HEADWATER_LAKE__TABLE": "iceberg",
        "HEADWATER_LAKE__CATALOG": json.dumps({name: catalog[name] for name in ("type", "uri")}),
        "HEADWATER_LAKE__NAMESPACE": "n",
    }
    lake = Lake(kafka_stack, tmp_path, **settings)
    sink = IcebergSink(catalog, "n", Rotation(1, 1, 1, 0), layout="envelope", mode="append", clock=lambda: 0.0)

    def events() -> Counter[str]:
        if not sink.catalog.table_exists(("n", "orders")):
            return Counter()
        return Counter(sink.catalog.load_table(("n", "orders")).scan().to_arrow().column("event_id").to_pylist())

    lake.write("first", 30)
    with lake.fleet.running():
        until(lambda: sum(events().values()) == 30, "all rows")
    lake.make_topic()
    lake.write("second", 50)
    with lake.fleet.running():
        until(lambda: sum(events().values()) >= 80, "all rows of the new topic")
    assert events() == once("first", 30) + once("second", 50)


def test_what_retention_took_before_the_lake_read_it_is_a_gap_and_not_missing(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    lake = Lake(kafka_stack, tmp_path)
    lake.write("first", 20)
    with lake.fleet.running():
        until(lambda: lake.is_carried(20, 20), "all rows")
    lake.write("lost", 20)
    lake.write("last", 20, hour=1)
    gone = [TopicPartition(lake.topic, partition, 20) for partition in range(2)]
    for future in admin(lake.fleet.conf).delete_records(gone).values():
        future.result(20)
    with lake.fleet.running():
        until(lambda: lake.is_carried(40, 60), "the rest")
    assert lake.events() == once("first", 20) + once("last", 20)
    done = headwater("lake", "verify", "--json", **lake.fleet.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {load["detail"] for load in json.loads(done.stdout)["lost"]} == {
        "Kafka deleted the offsets 10 to 19 before they were read"
    }
