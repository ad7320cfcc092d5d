"""Iceberg tables: every change once, or every item as it is now, whatever fails when."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from confluent_kafka import Message
from support.rest_catalog import RestCatalog
from support.sink_worker import PARTITION, Clock, Killed, Killer, Owner

from pipeline.errors import FatalError, TransientError
from pipeline.sinks.lake.iceberg.columns import columns_of
from pipeline.sinks.lake.iceberg.commit import DEFAULTS
from pipeline.sinks.lake.iceberg.sink import IcebergSink
from pipeline.sinks.lake.layouts.columns import item_of
from pipeline.sinks.lake.sink import Rotation


def record(offset: int, key: str, op: str, **item: dict[str, Any]) -> Message:
    body: dict[str, Any] = {"Keys": {"k": {"S": key}}, "SequenceNumber": str(offset), "ApproximateCreationDateTime": 1}
    if op != "REMOVE":
        body["NewImage"] = {"k": {"S": key}, **item}
    arn = "arn:aws:dynamodb:eu-west-1:1:table/T/stream/x"
    value = {"eventID": f"e{offset}", "eventName": op, "eventSourceARN": arn, "dynamodb": body}
    key_bytes = json.dumps({"k": {"S": key}}).encode()
    return Message(*PARTITION, offset=offset, key=key_bytes, value=json.dumps(value).encode(), timestamp=(1, offset))


def lake(
    directory: Path,
    mode: Literal["append", "upsert"],
    layout: Literal["envelope", "columns"] = "columns",
    killer: Killer | None = None,
) -> Callable[[Clock], IcebergSink]:
    def make(clock: Clock) -> IcebergSink:
        catalog = {"type": "sql", "uri": f"sqlite:///{directory}/catalog.db", "warehouse": f"file://{directory}"}
        rotation = Rotation(4, 1 << 20, 60, 0)
        sink = IcebergSink(catalog, "n", rotation, layout=layout, mode=mode, clock=clock)
        if killer is not None:
            sink._commit = killer.wrap(sink._commit)  # type: ignore[method-assign]
        return sink

    return make


def carry(owner: Owner, slices: int = 8) -> int | None:
    committed = None
    for _ in range(slices):
        committed = owner.slice(3) or committed
        owner.work()
        owner.clock.now += 100
    return committed


def rows(owner: Owner) -> list[dict[str, Any]]:
    sink = owner.sink
    assert isinstance(sink, IcebergSink)
    found: list[dict[str, Any]] = sink.catalog.load_table(("n", "T")).scan().to_arrow().to_pylist()
    return found


HISTORY = {
    0: record(0, "a", "INSERT", n={"N": "1"}),
    1: record(1, "b", "INSERT", n={"N": "1.5"}, s={"S": "x"}),
    2: record(2, "a", "MODIFY", n={"N": "2"}),
    3: record(3, "b", "REMOVE"),
    5: record(5, "c", "INSERT", n={"N": "1E+100"}, m={"M": {"x": {"S": "y"}}}),
    6: record(6, "a", "MODIFY", n={"N": "3"}, new={"BOOL": True}),
    7: record(7, "d", "INSERT", n={"S": "no number"}),
}


def test_every_change_is_a_row(tmp_path: Path) -> None:
    owner = Owner(lake(tmp_path, "append"), HISTORY, 0)
    assert carry(owner) == 8
    assert [row["_offset"] for row in sorted(rows(owner), key=lambda row: row["_offset"])] == list(HISTORY)


def test_the_envelope_is_the_same_for_every_table(tmp_path: Path) -> None:
    owner = Owner(lake(tmp_path, "append", "envelope"), HISTORY, 0)
    carry(owner)
    assert {row["table"] for row in rows(owner)} == {"T"}
    assert sorted(row["offset"] for row in rows(owner)) == list(HISTORY)


def test_every_item_is_a_row_as_it_is_now(tmp_path: Path) -> None:
    owner = Owner(lake(tmp_path, "upsert"), HISTORY, 0)
    carry(owner)
    found = {row["k"]: row for row in rows(owner)}
    assert sorted(found) == ["a", "c", "d"]
    assert found["a"]["n"] == Decimal(3)
    assert found["a"]["new"] is True
    assert json.loads(found["c"]["_overflow"]) == {"n": {"N": "1E+100"}}
    assert json.loads(found["c"]["m"]) == {"x": {"S": "y"}}
    assert json.loads(found["d"]["_overflow"]) == {"n": {"S": "no number"}}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("mode", ["append", "upsert"])
@pytest.mark.parametrize("how", ["kill", "fail"])
def test_nothing_is_lost_or_doubled(tmp_path: Path, mode: Literal["append", "upsert"], how: str, after: bool) -> None:
    killer = Killer()
    make = lake(tmp_path, mode, killer=killer)
    owner, committed = Owner(make, HISTORY, 0), 0
    for round_ in range(6):
        error = TransientError("slow down") if how == "fail" else None
        killer.plan(round_ % 2, after=after, error=error)
        try:
            committed = owner.slice(3) or committed
            owner.work()
        except Killed:
            owner = Owner(make, HISTORY, committed)
        owner.clock.now += 100
    killer.plan(-1, after=False)
    assert carry(owner) in {8, None}
    found = rows(owner)
    if mode == "append":
        assert sorted(row["_offset"] for row in found) == list(HISTORY)
    else:
        assert sorted(row["k"] for row in found) == ["a", "c", "d"]


def test_a_former_owner_adds_nothing(tmp_path: Path) -> None:
    make = lake(tmp_path, "append")
    zombie, owner = Owner(make, HISTORY, 0), Owner(make, HISTORY, 0)
    zombie.slice(5)
    carry(owner)
    zombie.work()
    zombie.clock.now += 100
    zombie.slice(0)
    zombie.work()
    assert sorted(row["_offset"] for row in rows(owner)) == list(HISTORY)


# -- names, versions, and one commit ----------------------------------------------------------------------------------


def load(directory: Path) -> Any:
    return lake(directory, "append")(Clock()).catalog.load_table(("n", "T"))


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_table_is_made_with_its_first_rows_in_one_commit(tmp_path: Path, mode: Literal["append", "upsert"]) -> None:
    owner = Owner(lake(tmp_path, mode), HISTORY, 0)
    owner.slice(4)
    owner.work()
    owner.clock.now += 100
    table = load(tmp_path)
    assert len(table.metadata.metadata_log) == 0
    assert len(table.snapshots()) == 1
    assert [field.name for field in table.spec().fields] == (["_topic_partition"] if mode == "upsert" else [])
    assert "_partition" not in table.schema().column_names


def test_who_makes_the_table_second_adds_to_it(tmp_path: Path) -> None:
    slow, fast = Owner(lake(tmp_path, "append"), HISTORY, 0), Owner(lake(tmp_path, "append"), HISTORY, 0)
    sink = slow.sink
    assert isinstance(sink, IcebergSink)
    commit = sink._commit

    def overtaken(*arguments: Any) -> None:
        sink._commit = commit  # type: ignore[method-assign]
        carry(fast)
        commit(*arguments)

    sink._commit = overtaken  # type: ignore[method-assign, assignment]
    assert carry(slow) == 8
    assert sorted(row["_offset"] for row in rows(slow)) == list(HISTORY)


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_attributes_that_are_called_as_our_columns_lose_nothing(
    tmp_path: Path, mode: Literal["append", "upsert"]
) -> None:
    """AWS Amplify keeps `_version`, `_deleted` and `_lastChangedAt` in each item."""
    names = ("_version", "_deleted", "_lastChangedAt", "_item_version", "_topic_partition", "_partition", "_topic")
    item: dict[str, Any] = {name: {"S": name} for name in names}
    owner = Owner(lake(tmp_path, mode), {0: record(0, "a", "INSERT", **item), 1: record(1, "b", "INSERT")}, 0)
    carry(owner)
    assert not owner.rejected
    row = next(row for row in rows(owner) if row["k"] == "a")
    assert row["_version"] == "_version"
    columns = columns_of(load(tmp_path)).columns
    assert {name: value for name, value in item_of(row, columns).items() if name in item} == item


def test_a_table_with_an_attribute_where_the_version_would_be_goes_by_time_and_sequence(tmp_path: Path) -> None:
    carry(Owner(lake(tmp_path, "upsert"), {0: record(5, "a", "INSERT", n={"N": "5"}, x={"S": "mine"})}, 0))
    table = load(tmp_path)
    with table.update_schema(allow_incompatible_changes=True) as update:
        update.delete_column("_item_version")
    with table.update_schema() as update:
        update.rename_column("x", "_item_version")
    later = {6: record(6, "a", "MODIFY", n={"N": "6"}), 7: record(7, "b", "INSERT", n={"N": "7"})}
    carry(Owner(lake(tmp_path, "upsert"), later, 6))
    again = {8: older(8, "a", n={"N": "5"}), 9: record(9, "c", "INSERT")}
    owner = Owner(lake(tmp_path, "upsert"), again, 8)
    carry(owner)
    assert not owner.rejected
    assert {row["k"]: row["n"] for row in rows(owner)} == {"a": Decimal(6), "b": Decimal(7), "c": None}


def older(offset: int, key: str, **item: dict[str, Any]) -> Message:
    """A change with the sequence number 1, at a later offset."""
    made = json.loads(record(1, key, "MODIFY", **item).value() or b"")
    key_bytes = json.dumps(made["dynamodb"]["Keys"]).encode()
    return Message(*PARTITION, offset=offset, key=key_bytes, value=json.dumps(made).encode(), timestamp=(1, offset))


def test_a_deleted_item_does_not_come_back_by_an_older_change(tmp_path: Path) -> None:
    changes = {**HISTORY, 8: older(8, "b", n={"N": "1"}), 9: older(9, "a", n={"N": "1"}), 10: record(10, "b", "INSERT")}
    owner = Owner(lake(tmp_path, "upsert"), {n: m for n, m in changes.items() if n < 10}, 0)
    carry(owner)
    assert {row["k"]: row["_offset"] for row in rows(owner)} == {"a": 6, "c": 5, "d": 7}
    owner = Owner(lake(tmp_path, "upsert"), changes, 10)
    carry(owner)
    assert {row["k"]: row["_offset"] for row in rows(owner)} == {"a": 6, "b": 10, "c": 5, "d": 7}


def test_a_change_of_the_same_age_replaces_what_a_flow_made_of_it_before(tmp_path: Path) -> None:
    changes = {
        **HISTORY,
        8: older(8, "b", n={"N": "1"}),
        9: older(9, "e", n={"N": "1"}),
        10: older(10, "e", n={"N": "2"}),
    }
    owner = Owner(lake(tmp_path, "upsert"), changes, 0)
    carry(owner)
    assert next(row for row in rows(owner) if row["k"] == "e")["n"] == Decimal(2)


def test_a_change_without_an_age_is_a_dead_letter_of_an_upsert_alone(tmp_path: Path) -> None:
    odd = json.loads(record(1, "b", "INSERT").value() or b"")
    odd["dynamodb"]["SequenceNumber"] = "no number"
    message = Message(*PARTITION, offset=1, key=b'{"k":{"S":"b"}}', value=json.dumps(odd).encode())
    for mode in ("append", "upsert"):
        (tmp_path / mode).mkdir()
        owner = Owner(lake(tmp_path / mode, mode), {0: HISTORY[0], 1: message}, 0)
        assert carry(owner) == 2
        assert [offset for offset, _ in owner.rejected] == ([1] if mode == "upsert" else [])
        assert len(rows(owner)) == (1 if mode == "upsert" else 2)


def test_the_namespace_of_another_lakes_deleted_items_is_refused(tmp_path: Path) -> None:
    owner = Owner(lake(tmp_path, "upsert"), HISTORY, 0)
    carry(owner)
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}"}
    sink = IcebergSink(
        catalog, "n_deleted", Rotation(4, 1 << 20, 60, 0), layout="columns", mode="append", clock=Clock()
    )
    writer = sink.open(PARTITION, 0)
    writer.add([HISTORY[0]], 1)
    with pytest.raises(FatalError, match="holds the deleted items of another lake"):
        writer.flush()


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_rest_catalog_gets_one_commit_a_flush(tmp_path: Path, mode: Literal["append", "upsert"]) -> None:
    rest = RestCatalog(tmp_path)
    with rest.running() as address:
        settings = {"type": "rest", "uri": address}

        def make(clock: Clock) -> IcebergSink:
            return IcebergSink(settings, "n", Rotation(4, 1 << 20, 60, 0), layout="columns", mode=mode, clock=clock)

        owner = Owner(make, HISTORY, 0)
        assert carry(owner) == 8
        found = rows(owner)
    table = rest.catalog.load_table(("n", "T"))
    assert len(table.snapshots()) == rest.commits.count("n.T") == 2
    assert [field.name for field in table.spec().fields] == (["_topic_partition"] if mode == "upsert" else [])
    assert DEFAULTS.items() <= table.properties.items()
    if mode == "append":
        assert sorted(row["_offset"] for row in found) == list(HISTORY)
    else:
        assert {row["k"]: row["_offset"] for row in found} == {"a": 6, "c": 5, "d": 7}
        assert rest.commits.count("n_deleted.T") == 1
