"""What the table store refuses, before anything connects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import faust
import pytest
from faust.exceptions import ImproperlyConfigured

from pipeline.errors import FatalError
from pipeline.state.table import Table
from pipeline.state.table_partitions import TablePartition


def app(tmp_path: Path, broker: str = "headwater://127.0.0.1:1", **options: Any) -> faust.App:
    return faust.App("t", broker=broker, store="headwater://", datadir=str(tmp_path), Table=Table, **options)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """A table that owns its partition 1, with nothing in it."""
    made: Any = app(tmp_path).Table("t", default=int)
    made.data.partitions.all = {1: TablePartition(tmp_path / "t-1.db")}
    return cast("Table", made)


@pytest.mark.parametrize(
    "make", [lambda app: app.SetTable("t"), lambda app: app.GlobalTable("t")], ids=["set", "global"]
)
def test_sets_and_global_tables_are_refused(tmp_path: Path, make: Callable[[faust.App], Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match="neither sets nor global tables"):
        make(app(tmp_path)).data.storage  # noqa: B018 - made at first use


def test_the_store_needs_the_transport(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="needs broker headwater://"):
        app(tmp_path, broker="kafka://127.0.0.1:1").Table("t").data  # noqa: B018


def test_many_keys_are_written_read_and_deleted_in_the_partition_that_is_named(table: Table) -> None:
    table.put_many({"a": 1, "b": 2, "c": 3}, partition=1)
    table.delete_many(["b", "x"], partition=1)
    assert table.get_many(["c", "b", "a", "a"], partition=1) == [3, 0, 1, 1]
    assert table.get_many(["c", "b", "a"]) == [3, 0, 1], "without an event: all partitions"
    assert table["a"] == 1
    assert table["nothing"] == 0
    assert sorted(table.items()) == [("a", 1), ("c", 3)]
    assert len(table) == 2


def test_a_write_outside_of_an_event_is_refused(table: Table) -> None:
    with pytest.raises(FatalError, match="outside of an event"):
        table["a"] = 1


def test_a_partition_of_another_worker_is_refused_with_the_likely_cause(table: Table) -> None:
    with pytest.raises(FatalError, match="partition 7 of table t is not on this worker"):
        table.put_many({"a": 1}, partition=7)


def test_a_cleared_table_is_empty(table: Table) -> None:
    table.put_many({"a": 1, "b": 2}, partition=1)
    table.clear()
    assert dict(table.items()) == {}
