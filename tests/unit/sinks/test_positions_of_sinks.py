"""A position knows its log: recreated topics, other clusters, and what the version before has left (tests/fixtures/before)."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Message
from support.paths import BEFORE
from support.sink_worker import LOG, OTHER_LOG, PARTITION, Clock, Killed, Killer, Owner

from pipeline.errors import FatalError
from pipeline.sinks.base import Sink, offset_is_of
from pipeline.sinks.lake import manifests
from pipeline.sinks.lake.compact import compact
from pipeline.sinks.lake.iceberg.parts import OFFSET
from pipeline.sinks.lake.iceberg.sink import IcebergSink
from pipeline.sinks.lake.layouts.columns import ColumnsLayout, TableSchema
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.paths import origin_of
from pipeline.sinks.lake.sink import LakeSink, Rotation
from pipeline.sinks.lake.verify import Carried, LostOffsets, verify_lake
from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log

Topic = dict[int, Message]


def topic(name: str, count: int, at: int = 1_764_000_000) -> Topic:
    """Changes of one log, each with an event ID of its own; all happened in this second."""
    found = {}
    for n in range(count):
        body = {
            "Keys": {"id": {"S": f"k{n % 4}"}},
            "NewImage": {"id": {"S": f"k{n % 4}"}, "n": {"N": str(n)}},
            "SequenceNumber": str(n + 1),
            "ApproximateCreationDateTime": at,
        }
        value = {"eventID": f"{name}{n}", "eventName": "MODIFY", "tableName": "t", "dynamodb": body}
        key = b'{"id":{"S":"k%d"}}' % (n % 4)
        found[n] = Message(*PARTITION, offset=n, key=key, value=json.dumps(value).encode())
    return found


def before() -> Topic:
    """The changes that the version before had."""
    rows = json.loads((BEFORE / "topic.json").read_text())
    return {
        row["offset"]: Message(*PARTITION, offset=row["offset"], key=row["key"].encode(), value=row["value"].encode())
        for row in rows
    }


def lake(objects: Objects, layout: str = "envelope", rows: int = 4) -> Callable[[Clock], Sink]:
    schemas: dict[str, TableSchema] = {}

    def grow(table: str, schema: TableSchema) -> TableSchema:
        schemas[table] = schemas.get(table, TableSchema()).merge(schema)
        return schemas[table]

    made = EnvelopeLayout() if layout == "envelope" else ColumnsLayout(lambda t: schemas.get(t, TableSchema()), grow)

    def make(clock: Clock) -> Sink:
        rotation = Rotation(rows, 1 << 20, 60, 0)
        return LakeSink(objects, made, {"s": PARTITION.topic}, rotation, path="table={table}/hour={hour}", clock=clock)

    return make


def iceberg(directory: str, mode: Literal["append", "upsert"] = "append", killer: Killer | None = None) -> Any:
    def make(clock: Clock) -> IcebergSink:
        catalog = {"type": "sql", "uri": f"sqlite:///{directory}catalog.db", "warehouse": f"{directory}warehouse"}
        sink = IcebergSink(catalog, "n", Rotation(4, 1 << 20, 60, 0), layout="columns", mode=mode, clock=clock)
        if killer is not None:
            sink._commit = killer.wrap(sink._commit)  # type: ignore[method-assign]
        return sink

    return make


def carry(owner: Owner, slices: int = 12, records: int = 4) -> int | None:
    committed = None
    for _ in range(slices):
        committed = owner.slice(records) or committed
        owner.work()
        owner.clock.now += 100
    return committed


def events(objects: Objects) -> Counter[str]:
    """What is in the files, whatever their layout."""
    found: Counter[str] = Counter()
    for path in objects.paths():
        if path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(objects.read(path)))
            prefix = "_" if "_event_id" in table.schema.names else ""
            found.update(table.column(f"{prefix}event_id").to_pylist())
    return found


def rows_of(owner: Owner) -> list[dict[str, Any]]:
    sink = cast("IcebergSink", owner.sink)
    found: list[dict[str, Any]] = sink.catalog.load_table(("n", "t")).scan().to_arrow().to_pylist()
    return found


def once(*names: str, count: int) -> Counter[str]:
    return Counter(f"{name}{n}" for name in names for n in range(count))


# -- a topic that was recreated ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [Committed(None), Committed(10, LOG)])
@pytest.mark.parametrize("layout", ["envelope", "columns"])
def test_all_changes_of_a_recreated_topic_are_in_the_lake(tmp_path: Path, layout: str, committed: Committed) -> None:
    objects = Objects(f"file://{tmp_path}")
    carry(Owner(lake(objects, layout), topic("first", 10), 0))
    again = Owner(lake(objects, layout), topic("second", 16), 0, log=OTHER_LOG, committed=committed)
    assert carry(again) == 16
    assert events(objects) == once("first", count=10) + once("second", count=16)
    assert verify_lake(objects).problems == ()


def test_all_changes_of_a_recreated_topic_are_in_the_iceberg_table(tmp_path: Path) -> None:
    directory = f"{tmp_path}/"
    carry(Owner(iceberg(directory), topic("first", 10), 0))
    again = Owner(iceberg(directory), topic("second", 16), 0, log=OTHER_LOG, committed=Committed(10, LOG))
    assert carry(again) == 16
    found = Counter(row["_event_id"] for row in rows_of(again))
    assert found == once("first", count=10) + once("second", count=16)


def test_a_lake_continues_from_another_cluster_with_the_same_names(tmp_path: Path) -> None:
    objects = Objects(f"file://{tmp_path}")
    carry(Owner(lake(objects), topic("here", 6), 0))
    there = Log("lkc-7x", "ppppppppppppppppppppp-")
    carry(Owner(lake(objects), topic("there", 6), 0, log=there))
    assert events(objects) == once("here", "there", count=6)
    assert {origin.mark for path in objects.paths() if (origin := origin_of(path))} == {LOG.topic_id, there.topic_id}


def test_without_topic_ids_a_cluster_is_told_from_another(tmp_path: Path) -> None:
    objects = Objects(f"file://{tmp_path}")
    for name in ("one", "other.1"):
        carry(Owner(lake(objects), topic(name, 6), 0, log=Log(name)))
    assert events(objects) == once("one", "other.1", count=6)
    assert verify_lake(objects).problems == ()


def test_without_any_id_a_recreated_topic_stops_the_lake_and_no_change_of_the_table_is_skipped(tmp_path: Path) -> None:
    objects = Objects(f"file://{tmp_path}/files")
    carry(Owner(lake(objects), topic("first", 6), 0, log=UNKNOWN))
    again = Owner(lake(objects), topic("second", 8), 0, log=UNKNOWN)
    carry(again, 2)
    assert "begins with the change first0, and p.sink.s[0] has second0 at offset 0" in str(again.fatal[0])
    assert isinstance(again.fatal[0], FatalError)
    assert events(objects) == once("first", count=6)

    carry(Owner(iceberg(f"{tmp_path}/"), topic("first", 6), 0, log=UNKNOWN))
    table = Owner(iceberg(f"{tmp_path}/"), topic("second", 8), 0, log=UNKNOWN)
    assert carry(table) == 8
    assert Counter(row["_event_id"] for row in rows_of(table)) == once("first", count=6) + once("second", count=8)
    carry(Owner(iceberg(f"{tmp_path}/"), topic("second", 8), 0, log=UNKNOWN))  # whose offsets were lost
    assert len(rows_of(table)) == 14


def test_offsets_that_go_back_without_an_abort_stop_the_worker(tmp_path: Path) -> None:
    owner = Owner(lake(Objects(f"file://{tmp_path}")), topic("first", 8), 0)
    carry(owner, 3)
    owner.topic, owner.at = topic("second", 8), 0
    owner.slice(4)
    assert "the record at offset 7 was read, and now the one at 0 comes" in str(owner.fatal[0])


def test_a_group_s_offset_is_of_this_log_of_another_or_of_a_version_before() -> None:
    assert offset_is_of(LOG, Committed(None), 0) == "nothing"
    assert offset_is_of(LOG, Committed(5, LOG), 5) == "same"
    assert offset_is_of(LOG, Committed(5, Log(LOG.cluster)), 5) == "same"
    assert offset_is_of(LOG, Committed(5, OTHER_LOG), 0) == "other"
    assert offset_is_of(LOG, Committed(5), 5) == "before"
    assert offset_is_of(LOG, Committed(5), 0) == "other"  # it lies beyond what is there


# -- what the version before has left ---------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [Committed(6), Committed(None)])
@pytest.mark.parametrize("layout", ["envelope", "columns"])
def test_a_lake_of_the_version_before_is_gone_on_with(tmp_path: Path, layout: str, committed: Committed) -> None:
    shutil.copytree(BEFORE / layout, tmp_path / "lake")
    objects, changes = Objects(f"file://{tmp_path}/lake"), before()
    more = {**changes, **{n: m for n, m in topic("more", 20).items() if n >= 12}}
    owner = Owner(lake(objects, layout), more, committed.offset or 0, committed=committed)
    assert carry(owner, records=8) == 20  # it reads further than the flush that was begun
    assert events(objects) == Counter([*(f"e{n}" for n in range(12)), *(f"more{n}" for n in range(12, 20))])
    assert not owner.fatal
    assert verify_lake(objects).problems == ()
    forms = {origin.offset: origin.mark for path in objects.paths() if (origin := origin_of(path))}
    assert forms == {0: "", 6: "", 9: ""} | {n: LOG.topic_id for n in forms if n >= 12} != {0: "", 6: "", 9: ""}


def test_the_first_flush_after_an_upgrade_is_known_to_a_worker_of_the_version_before(tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "envelope", tmp_path / "lake")
    objects, changes = Objects(f"file://{tmp_path}/lake"), before()
    objects.delete("table=t/hour=16/p.sink.s+0+00000000000000000006.parquet")  # it has begun nothing yet
    carry(Owner(lake(objects), changes, 6, committed=Committed(6)))
    sleeper = Owner(lake(objects), changes, 6, log=UNKNOWN, committed=Committed(6))  # writes names as that version does
    sleeper.slice(6)
    sleeper.work()
    assert events(objects) == once("e", count=12)


def test_the_lake_of_the_version_before_is_of_another_log_if_its_first_change_is_another(tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "envelope", tmp_path / "lake")
    objects = Objects(f"file://{tmp_path}/lake")
    carry(Owner(lake(objects), topic("new", 8), 0, committed=Committed(None)))
    assert events(objects) == once("e", count=9) + once("new", count=8)
    beyond = Owner(lake(objects), topic("newer", 8), 0, log=OTHER_LOG, committed=Committed(12))
    carry(beyond)
    assert events(objects) == once("e", count=9) + once("new", "newer", count=8)


@pytest.mark.parametrize("committed", [Committed(6), Committed(None)])
@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_table_of_the_version_before_is_gone_on_with(
    tmp_path: Path, mode: Literal["append", "upsert"], committed: Committed, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(BEFORE / mode, tmp_path / mode)
    monkeypatch.chdir(tmp_path / mode)  # its paths are relative
    changes = before() | {n: m for n, m in topic("more", 16, at=1_764_007_200).items() if n >= 12}
    owner = Owner(iceberg("", mode), changes, committed.offset or 0, committed=committed)
    assert carry(owner) == 16
    found = rows_of(owner)
    if mode == "append":
        assert sorted(row["_offset"] for row in found) == list(range(16))
    else:
        assert sorted((row["id"], int(row["n"])) for row in found) == [(f"k{n % 4}", n) for n in range(12, 16)]
    sink = cast("IcebergSink", owner.sink)
    table = sink.catalog.load_table(("n", "t"))
    assert "_partition" in table.schema().column_names
    assert "_topic_partition" not in table.schema().column_names
    assert [field.name for field in table.spec().fields] == (["_partition"] if mode == "upsert" else [])
    properties = table.properties
    assert properties[f"{OFFSET}p.sink.s/{LOG.topic_id}/0"] == "16"
    assert properties[f"{OFFSET}p.sink.s/0"] == "16"  # a worker of that version that wakes up adds nothing


def test_what_the_version_before_has_of_another_log_hides_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(BEFORE / "append", tmp_path / "append")
    monkeypatch.chdir(tmp_path / "append")
    owner = Owner(iceberg(""), topic("new", 16), 0, committed=Committed(None))
    carry(owner)
    assert Counter(row["_event_id"] for row in rows_of(owner)) == once("e", count=12) + once("new", count=16)


def test_a_manifest_that_a_worker_of_the_version_before_has_written_again_loses_no_log(tmp_path: Path) -> None:
    objects = Objects(f"file://{tmp_path}")
    for log, name in ((LOG, "first"), (OTHER_LOG, "second")):
        carry(Owner(lake(objects), topic(name, 8), 0, log=log))
    path = "table=t/hour=16/_manifest.json"
    merged = compact(objects, lambda _t, _p: 8, size=1, older_than_us=1 << 60, log_of=lambda _topic: OTHER_LOG)
    assert [one.entries for one in merged] == [4]  # they are too large to be merged: the manifest lists them
    told = json.loads(objects.read(path))
    for file in told["files"]:
        for origin in file["origins"]:
            del origin["log"]
    (tmp_path / path).write_text(json.dumps(told))
    assert verify_lake(objects, carried=[carried(8, log=OTHER_LOG)]).problems == ()
    (found,) = manifests.read_manifests(objects)
    assert all(origin.log for file in found.files for origin in file.origins)


# -- a commit that another has overtaken ------------------------------------------------------------------------------


def test_rows_are_not_added_to_a_table_that_another_owner_has_committed_to_meanwhile(tmp_path: Path) -> None:
    directory, changes = f"{tmp_path}/", topic("e", 8)
    slow = Owner(iceberg(directory), changes, 0)
    sink = cast("IcebergSink", slow.sink)
    commit, owner = sink._commit, Owner(iceberg(directory), changes, 0)

    def overtaken(*arguments: Any) -> None:
        sink._commit = commit  # type: ignore[method-assign]
        carry(owner)
        commit(*arguments)

    carry(Owner(iceberg(directory), {0: changes[0]}, 0))  # the table is there
    sink._commit = overtaken  # type: ignore[method-assign, assignment]
    carry(slow)
    assert Counter(row["_event_id"] for row in rows_of(slow)) == once("e", count=8)


# -- verify -----------------------------------------------------------------------------------------------------------


def carried(committed: int, low: int = 0, log: Log = LOG) -> Carried:
    return Carried(*PARTITION, log, low, Committed(committed, log))


@pytest.fixture
def held(tmp_path: Path) -> Objects:
    """A lake with the offsets 0 to 11, four a file."""
    objects = Objects(f"file://{tmp_path}/held")
    carry(Owner(lake(objects), topic("e", 12), 0))
    assert verify_lake(objects, carried=[carried(12)]).problems == ()
    return objects


def without(objects: Objects, *offsets: int) -> None:
    """Take files away, and forget them."""
    for path in objects.paths():
        if (origin := origin_of(path)) and origin.offset in offsets:
            objects.delete(path)
            objects.delete(manifests.entry_of(path))
            manifest = manifests.manifest_path(path.rpartition("/")[0])
            if objects.exists(manifest):
                manifests.exchange(objects, path.rpartition("/")[0], added=[], removed=[path])


def details(objects: Objects, *known: Carried, lost: tuple[LostOffsets, ...] = ()) -> list[str]:
    return [problem.detail for problem in verify_lake(objects, carried=known, lost=lost).problems]


def test_the_beginning_that_the_lake_must_have_is_missed(held: Objects) -> None:
    without(held, 0)
    assert details(held) == ["offsets 0 to 3 are in no file"]


def test_the_end_that_the_group_has_committed_is_missed(held: Objects) -> None:
    without(held, 8)
    assert details(held, carried(12)) == [
        "offsets 8 to 11 are in no file, below the offset 12 that the group has committed"
    ]
    assert details(held) == []  # without Kafka it is not seen


def test_a_series_of_which_nothing_is_there_is_missed(held: Objects) -> None:
    without(held, 0, 4, 8)
    assert details(held, carried(12)) == [
        "offsets 0 to 11 are in no file, below the offset 12 that the group has committed"
    ]
    assert details(held) == ["of what begins at offset 0 there is no file, or the first one is being written"]


def test_a_sink_that_was_committed_and_of_which_the_lake_has_nothing_is_missed(held: Objects) -> None:
    other = Carried("p.sink.other", 1, LOG, 3, Committed(7, LOG))
    (problem,) = verify_lake(held, carried=[carried(12), other]).problems
    assert (problem.path, problem.detail.split(",")[0]) == ("p.sink.other[1]", "offsets 0 to 6 are in no file")
    nothing = Carried("p.sink.new", 0, LOG, 0, Committed(None))
    assert verify_lake(held, carried=[carried(12), nothing]).problems == ()


def test_a_missing_entry_is_a_problem(held: Objects) -> None:
    held.delete(next(path for path in held.paths() if path.startswith("_manifests/")))
    assert {problem.what for problem in verify_lake(held, carried=[carried(12)]).problems} == {"not listed", "missing"}


def test_a_series_whose_beginning_is_not_written_down_any_more_is_a_problem(held: Objects) -> None:
    (marker,) = held.paths("_series")
    held.delete(marker)
    assert "which says where the files begin, is not there" in details(held, carried(12))[0]


@pytest.mark.parametrize("path", ["table=t/hour=16/_manifest.json", "_manifests/table=t/hour=16/gaps-x.json"])
def test_a_broken_manifest_is_one_problem_among_others(held: Objects, path: str) -> None:
    held.create(path, b"{")
    assert {problem.what for problem in verify_lake(held).problems} == {"unreadable"}
    (entry, *_) = [one for one in held.paths("_manifests") if "gaps-" not in one]
    held.delete(entry)
    held.create(entry, b"{")
    assert {problem.what for problem in verify_lake(held).problems} == {"unreadable", "not listed", "missing"}


def test_an_empty_place_is_a_problem(tmp_path: Path) -> None:
    (problem,) = verify_lake(Objects(f"file://{tmp_path}/mistyped")).problems
    assert (problem.what, problem.detail) == ("empty", "nothing is listed and there is no file: is the URL right?")
    with pytest.raises(FatalError, match="there is no such directory"):
        Objects(f"file://{tmp_path}/nowhere", make=False)
    assert not (tmp_path / "nowhere").exists()


def test_a_hole_that_a_gap_explains_is_a_gap(held: Objects) -> None:
    without(held, 4)
    gap = LostOffsets(*PARTITION, 4, 6, str(LOG))
    checked = verify_lake(held, carried=[carried(12)], lost=[gap])
    assert [one.detail for one in checked.lost] == ["Kafka deleted the offsets 4 to 6 before they were read"]
    assert [problem.detail for problem in checked.problems] == ["offsets 7 to 7 are in no file"]
    elsewhere = gap._replace(log=str(OTHER_LOG))
    assert details(held, carried(12), lost=(elsewhere,)) == ["offsets 4 to 7 are in no file"]


def test_offsets_of_dead_letters_alone_are_not_missed(tmp_path: Path) -> None:
    objects, changes = Objects(f"file://{tmp_path}"), topic("e", 12)
    for n in (0, 1, 2, 3, 8, 9, 10, 11):
        changes[n] = Message(*PARTITION, offset=n, key=b"k", value=b"no change")
    owner = Owner(lake(objects), changes, 0)
    assert carry(owner, 20) == 12
    assert sorted(offset for offset, _ in owner.rejected) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert details(objects, carried(12)) == []


def test_the_end_of_a_former_log_is_missed_too(tmp_path: Path) -> None:
    objects = Objects(f"file://{tmp_path}")
    carry(Owner(lake(objects), topic("first", 8), 0))
    without(objects, 4)
    carry(Owner(lake(objects), topic("second", 4), 0, log=OTHER_LOG, committed=Committed(8, LOG)))
    found = details(objects, carried(4, log=OTHER_LOG))
    assert found == ["offsets 4 to 7 are in no file, below the offset 8 that the group has committed"]


def test_a_lake_of_the_version_before_that_kafka_still_has_the_beginning_of_is_missed(tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "envelope", tmp_path / "lake")
    objects = Objects(f"file://{tmp_path}/lake")
    without(objects, 0)
    owner = Owner(lake(objects), before(), 6, committed=Committed(6))
    carry(owner)
    assert details(objects, carried(12, low=2)) == ["offsets 2 to 5 are in no file"]


def test_rows_that_a_worker_of_the_version_before_has_written_once_more_are_twice_there(tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "envelope", tmp_path / "lake")
    objects = Objects(f"file://{tmp_path}/lake")
    carry(
        Owner(lake(objects), before() | {n: m for n, m in topic("x", 24).items() if n >= 12}, 6, committed=Committed(6))
    )
    assert verify_lake(objects).problems == ()
    sleeper = {n: m for n, m in topic("x", 24).items() if n >= 14}
    carry(Owner(lake(objects), sleeper, 14, log=UNKNOWN, committed=Committed(14)))
    objects.delete(f"_series/{PARTITION.topic}+0.json")  # that version has none
    assert {problem.what for problem in verify_lake(objects).problems} == {"twice"}


def test_files_of_a_former_log_are_compacted_and_those_of_another_cluster_are_left(tmp_path: Path) -> None:
    objects = Objects(f"file://{tmp_path}")
    for log in (LOG, OTHER_LOG, Log("elsewhere", "ppppppppppppppppppppp-")):
        carry(Owner(lake(objects), topic(log.topic_id, 8), 0, log=log))
    done = list(
        compact(objects, lambda _t, _p: 0, size=1 << 20, older_than_us=1 << 60, log_of=lambda _topic: OTHER_LOG)
    )
    assert [(one.before, one.after) for one in done] == [(2, 1)]
    assert verify_lake(objects).problems == ()
    assert sum(events(objects).values()) == 24


# -- a row that a table refuses ---------------------------------------------------------------------------------------


def refusing(directory: str, *refused: int) -> tuple[Any, Killer]:
    """Return what makes a sink whose table refuses rows for their content."""
    killer = Killer()

    def make(clock: Clock) -> IcebergSink:
        sink: IcebergSink = iceberg(directory)(clock)
        commit = sink._commit

        def refuse(name: str, table: Any, tp: Any, rows: Any, properties: Any) -> None:
            if set(rows.offsets) & set(refused):
                raise ValueError("a value that no column takes")
            killer.wrap(commit)(name, table, tp, rows, properties)

        sink._commit = refuse  # type: ignore[method-assign]
        return sink

    return make, killer


def test_a_row_that_a_table_refuses_is_a_dead_letter_and_the_others_continue(tmp_path: Path) -> None:
    make, _ = refusing(f"{tmp_path}/", 0, 5, 6)
    owner = Owner(make, topic("e", 12), 0)
    assert carry(owner) == 12
    assert sorted(offset for offset, _ in owner.rejected) == [0, 5, 6]
    assert "refuses it: ValueError: a value that no column takes" in str(owner.rejected[0][1])
    assert sorted(row["_offset"] for row in rows_of(owner)) == [1, 2, 3, 4, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(5))
def test_no_crash_loses_the_dead_letter_of_a_refused_row(tmp_path: Path, call: int, after: bool) -> None:
    make, killer = refusing(f"{tmp_path}/", 1, 6)
    owner, committed, letters = Owner(make, topic("e", 12), 0), 0, list[int]()
    killer.plan(call, after=after)
    for _ in range(3):
        try:
            for _ in range(4):
                committed = owner.slice(4) or committed
                letters += [offset for offset, _ in owner.rejected]
                owner.rejected.clear()
                owner.work()
                owner.clock.now += 100
        except Killed:
            owner = Owner(make, topic("e", 12), committed)
            killer.plan(-1, after=False)
    assert committed == 12
    assert sorted(letters) == [1, 6]
    assert sorted(row["_offset"] for row in rows_of(owner)) == [0, 2, 3, 4, 5, 7, 8, 9, 10, 11]


def test_a_table_that_takes_nothing_is_tried_again_and_no_row_is_blamed(tmp_path: Path) -> None:
    owner = Owner(iceberg(f"{tmp_path}/"), topic("e", 12), 0)
    carry(owner, 2)
    sink = cast("IcebergSink", owner.sink)

    def broken(*_: Any) -> None:
        raise ValueError("the catalog answers nonsense")

    sink._commit = broken  # type: ignore[method-assign, assignment]
    carry(owner, 4)
    assert not owner.rejected
    assert not owner.fatal
    assert owner.states[-1] is not None
