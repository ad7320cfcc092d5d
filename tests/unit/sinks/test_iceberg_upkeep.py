"""The upkeep of Iceberg tables: what is there stays, what is old goes, and a worker beside it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

import pytest
from confluent_kafka import Message
from faust.types import TP
from pyiceberg.table import Table, TableProperties

from pipeline.sinks.lake.iceberg import maintain as iceberg_maintain
from pipeline.sinks.lake.iceberg.commit import DEFAULTS
from pipeline.sinks.lake.iceberg.maintain import Ages, Upkeep, maintain_tables
from pipeline.sinks.lake.iceberg.parts import OFFSET
from pipeline.sinks.lake.iceberg.sink import IcebergSink
from pipeline.sinks.lake.sink import Rotation

pytestmark = pytest.mark.slow

TOPIC = TP("p.sink.s", 0)
Mode = Literal["append", "upsert"]
LATER = datetime.now(UTC) + timedelta(days=40)
NOTHING = timedelta(0)
ALL = Ages(snapshots=NOTHING, keep=1, orphans=NOTHING, tombstones=timedelta(days=30))
"""Everything but what is needed: there is no worker beside it."""


def catalog(directory: Path) -> dict[str, str]:
    return {"type": "sql", "uri": f"sqlite:///{directory}/catalog.db", "warehouse": f"file://{directory}/wh"}


def sink_in(directory: Path, mode: Mode) -> IcebergSink:
    rotation = Rotation(10_000, 1 << 27, 60, 0)
    return IcebergSink(catalog(directory), "n", rotation, layout="columns", mode=mode, clock=lambda: 0.0)


def message(offset: int, item: int, *, gone: bool = False, at: int = 1_764_000_000) -> Message:
    key = {"id": {"S": f"k{item}"}}
    body: dict[str, Any] = {"Keys": key, "SequenceNumber": str(offset + 1), "ApproximateCreationDateTime": at}
    if not gone:
        body["NewImage"] = {**key, "n": {"N": str(offset)}}
    value = {"eventID": f"e{offset}", "eventName": "REMOVE" if gone else "MODIFY", "tableName": "t", "dynamodb": body}
    return Message(*TOPIC, offset=offset, key=json.dumps(key).encode(), value=json.dumps(value).encode())


def bring(sink: IcebergSink, records: list[Message]) -> None:
    begin = records[0].offset() or 0
    writer = sink.open(TOPIC, begin)
    assert not writer.add(records, begin + len(records))
    assert not writer.flush().rejected


def table_in(directory: Path, name: tuple[str, str] = ("n", "t")) -> Table:
    return sink_in(directory, "append").catalog.load_table(name)


def rows(table: Table) -> list[dict[str, Any]]:
    return sorted(table.scan().to_arrow().to_pylist(), key=lambda row: row["_offset"])


def of(directory: Path, name: str = "n.t", **settings: Any) -> Upkeep:
    report = maintain_tables(catalog(directory), "n", **settings)
    return next(table for table in report.tables if table.table == name)


@pytest.fixture
def appended(tmp_path: Path) -> Iterator[Path]:
    """A table of 12 commits."""
    sink = sink_in(tmp_path, "append")
    for commit in range(12):
        bring(sink, [message(commit * 10 + n, n) for n in range(10)])
    yield tmp_path
    sink.catalog.close()


def test_small_files_become_one_and_no_row_and_no_property_changes(appended: Path) -> None:
    before = table_in(appended)
    report = maintain_tables(catalog(appended), "n")
    (upkeep,) = report.tables
    assert (upkeep.compacted, upkeep.snapshots, upkeep.orphans, upkeep.left) == (12, 0, 0, [])
    after = table_in(appended)
    assert len(list(after.scan().plan_files())) == 1
    assert rows(after) == rows(before)
    assert after.properties == before.properties
    assert len(after.snapshots()) == 13
    assert report.requests is not None
    assert report.requests["read"] > 12
    assert report.requests["written"] >= 4
    assert of(appended).compacted == 0


def test_what_is_old_goes_and_what_is_there_can_be_read(appended: Path) -> None:
    before = rows(table_in(appended))
    upkeep = of(appended, ages=ALL, now=LATER)
    assert (upkeep.compacted, upkeep.snapshots) == (12, 12)
    assert upkeep.orphans >= 12 + 12  # the small files, and the lists of the snapshots
    assert upkeep.bytes_after < upkeep.bytes_before
    table = table_in(appended)
    assert rows(table) == before
    assert len(table.snapshots()) == 1
    bring(sink_in(appended, "append"), [message(120, 1)])
    assert [row["_offset"] for row in rows(table_in(appended))] == list(range(121))
    left = {path.name for path in (appended / "wh").rglob("*") if path.is_file()}
    assert upkeep.files_after < len(left)  # only the last commit has come


def test_the_newest_snapshots_stay_and_so_do_young_files(appended: Path) -> None:
    upkeep = of(appended, now=LATER)
    assert (upkeep.snapshots, len(table_in(appended).snapshots())) == (3, 10)
    assert of(appended, ages=Ages(snapshots=NOTHING)).snapshots == 0
    young = appended / "wh" / "n" / "t" / "data" / "young.parquet"
    young.write_bytes(b"about to be committed")
    old = young.with_name("old.parquet")
    old.write_bytes(b"of a worker that was killed")
    days_ago = (datetime.now(UTC) - timedelta(days=3, hours=1)).timestamp()
    os.utime(old, (days_ago, days_ago))
    assert of(appended).orphans == 1
    assert young.exists()
    assert not old.exists()


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(appended: Path) -> None:
    files = sorted(path for path in appended.rglob("*") if path.is_file())
    steps: list[str] = []
    upkeep = of(appended, ages=ALL, now=LATER, dry_run=True, progress=steps.append)
    assert (upkeep.compacted, upkeep.snapshots) == (12, 11)
    assert upkeep.orphans > 0
    assert steps[0] == "n.t: 12 small files of a partition"
    assert (upkeep.files_after, upkeep.bytes_after) == (upkeep.files_before, upkeep.bytes_before)
    assert sorted(path for path in appended.rglob("*") if path.is_file()) == files


def test_nothing_is_removed_where_the_listing_is_spelt_otherwise(
    appended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iceberg_maintain, "files_below", renamed)
    upkeep = of(appended, ages=ALL, now=LATER)
    assert upkeep.orphans == 0
    assert "is not where the table says it is" in upkeep.left[0]
    assert len(rows(table_in(appended))) == 120


def renamed(table: Table) -> Iterator[Any]:
    from pipeline.sinks.lake.iceberg.io import files_below  # noqa: PLC0415 - the other one is replaced

    return ((f"{path}%20", listed) for path, listed in files_below(table))


def test_tables_of_others_are_left_alone(appended: Path) -> None:
    others = sink_in(appended, "append").catalog
    table = others.create_table(("n", "theirs"), table_in(appended).schema())
    for _ in range(6):
        table.append(table_in(appended).scan().to_arrow())
    report = maintain_tables(catalog(appended), "n", ages=ALL, now=LATER)
    assert [one.table for one in report.tables] == ["n.t"]
    assert len(table.refresh().snapshots()) == 6


def test_tombstones_are_forgotten_when_they_are_old_and_of_an_item_the_newest_stays(tmp_path: Path) -> None:
    sink = sink_in(tmp_path, "upsert")
    bring(sink, [message(n, n) for n in range(3)])
    for offset in range(3, 12, 3):
        bring(sink, [message(offset, 0, gone=True), message(offset + 1, 1, gone=True)])
        bring(sink, [message(offset + 2, 0)])
    assert sorted(row["id"] for row in rows(table_in(tmp_path))) == ["k0", "k2"]
    name = ("n_deleted", "t")
    there = [(row["_key"], row["_item_version"]) for row in table_in(tmp_path, name).scan().to_arrow().to_pylist()]
    upkeep = of(tmp_path, "n_deleted.t", fewest=2)
    kept = [(row["_key"], row["_item_version"]) for row in table_in(tmp_path, name).scan().to_arrow().to_pylist()]
    assert sorted(kept) == sorted(dict(sorted(there)).items())
    assert upkeep.tombstones == len(there) - len(kept) == 6 - 2
    bring(sink, [message(12, 1, at=1)])  # older than the deletion
    assert sorted(row["id"] for row in rows(table_in(tmp_path))) == ["k0", "k2"]
    assert of(tmp_path, "n_deleted.t", now=LATER).tombstones == len(kept)
    bring(sink, [message(13, 1, at=1)])  # as old, but nothing is known of the deletion by now
    assert sorted(row["id"] for row in rows(table_in(tmp_path))) == ["k0", "k1", "k2"]


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_worker_beside_it_continues_and_every_row_is_there(tmp_path: Path, mode: Mode) -> None:
    ended, errors, commits = Event(), list[BaseException](), 30

    def work() -> None:
        try:
            sink = sink_in(tmp_path, mode)
            for commit in range(commits):
                bring(sink, [message(commit * 5 + n, (commit * 5 + n) % 40) for n in range(5)])
        except BaseException as error:  # noqa: BLE001 - the test tells it
            errors.append(error)
        ended.set()

    bring(sink_in(tmp_path, mode), [message(n, n) for n in range(5)])
    worker = Thread(target=work)
    worker.start()
    done = list[Upkeep]()
    # Young files stay: those of a commit under way are among them.
    ages = Ages(snapshots=NOTHING, keep=2)
    while not ended.is_set():
        done += maintain_tables(catalog(tmp_path), "n", ages=ages, fewest=2).tables
    worker.join()
    assert not errors
    found = rows(table_in(tmp_path))
    offsets = [row["_offset"] for row in found]
    assert offsets == (list(range(commits * 5)) if mode == "append" else list(range(commits * 5 - 40, commits * 5)))
    assert table_in(tmp_path).properties[f"{OFFSET}p.sink.s/0"] == str(commits * 5)
    assert sum(one.compacted + one.snapshots for one in done) > 0
    last = of(tmp_path, ages=ALL, now=LATER, fewest=2)
    assert last.left == []
    assert rows(table_in(tmp_path)) == found


def test_metadata_stay_small_by_properties_that_a_user_can_change(tmp_path: Path) -> None:
    sink = sink_in(tmp_path, "upsert")
    bring(sink, [message(0, 0)])
    assert DEFAULTS.items() <= table_in(tmp_path).properties.items()
    with table_in(tmp_path).transaction() as transaction:
        transaction.set_properties({TableProperties.METADATA_PREVIOUS_VERSIONS_MAX: "3"})
        transaction.remove_properties(TableProperties.MANIFEST_MERGE_ENABLED)
    for offset in range(1, 60):
        bring(sink, [message(offset, offset % 5)])
    table = table_in(tmp_path)
    assert table.properties[TableProperties.METADATA_PREVIOUS_VERSIONS_MAX] == "3"
    assert table.properties[TableProperties.MANIFEST_MERGE_ENABLED] == "true"
    assert len(list((tmp_path / "wh" / "n" / "t" / "metadata").glob("*.metadata.json"))) <= 4
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert len(snapshot.manifests(table.io)) <= 20
    assert len(table.snapshots()) == 60, "one a commit"
