"""What names may do at a destination: every row is stored, nothing leaves its place, and a refusal is one record's."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sink_worker import PARTITION, Clock, Owner

from pipeline.sinks.base import Sink
from pipeline.sinks.lake.iceberg.columns import columns_of, spelling
from pipeline.sinks.lake.iceberg.sink import IcebergSink
from pipeline.sinks.lake.layouts.columns import ColumnsLayout, TableSchema, item_of
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.paths import Directories, escaped_path
from pipeline.sinks.lake.sink import LakeSink, Rotation

AT = 1_764_000_000


def change(offset: int, item: Any, table: str = "t", **style: Any) -> Message:
    body = {
        "Keys": {"id": {"S": str(offset)}},
        "SequenceNumber": str(offset),
        "ApproximateCreationDateTime": AT,
        "NewImage": {"id": {"S": str(offset)}, **item} if isinstance(item, dict) else item,
    }
    value = {"eventID": f"e{offset}", "eventName": "INSERT", "tableName": table, "dynamodb": body}
    text = json.dumps(value, **style).encode(errors="surrogatepass")
    return Message(*PARTITION, offset=offset, key=b'{"id":{"S":"%d"}}' % offset, value=text)


def carry(owner: Owner, slices: int = 6) -> None:
    for _ in range(slices):
        owner.slice(50)
        owner.work()
        owner.clock.now += 100
    assert not owner.fatal


def iceberg(directory: Path, mode: Literal["append", "upsert"]) -> Any:
    def make(clock: Clock) -> IcebergSink:
        catalog = {"type": "sql", "uri": f"sqlite:///{directory}/catalog.db", "warehouse": f"file://{directory}/wh"}
        rotation = Rotation(1_000, 1 << 27, 5, 0)
        return IcebergSink(catalog, "n", rotation, layout="columns", mode=mode, clock=clock)

    return make


def stored(owner: Owner, table: str = "t") -> dict[str, dict[str, Any]]:
    """The items of a table, by event ID."""
    found = cast("IcebergSink", owner.sink).catalog.load_table(("n", table))
    columns = columns_of(found).columns
    return {row["_event_id"]: item_of(row, columns) for row in found.scan().to_arrow().to_pylist()}


POISON: dict[str, list[dict[str, Any]]] = {
    "a set and its element": [{"tags": {"SS": ["a"]}, "tags.element": {"S": "y"}}],
    "the element before the set": [{"tags.element": {"S": "y"}}, {"tags": {"SS": ["a"]}}],
    "a name and how files spell it": [{"a-b": {"S": "y"}, "a_x2Db": {"S": "z"}}],
    "the same in two rows": [{"a-b": {"S": "y"}}, {"a_x2Db": {"S": "z"}}],
    "a leading digit and its spelling": [{"1a": {"S": "y"}, "_1a": {"S": "z"}}],
    "dots": [{"a.b": {"S": "y"}, ".": {"S": "z"}, "a": {"M": {"b": {"S": "x"}}}, ".a": {"S": "1"}, "a.": {"S": "2"}}],
    "empty and blank": [{"": {"S": "y"}, " ": {"S": "z"}, "\u3000": {"S": "w"}}],
    "control characters": [{"a\x00b": {"S": "y"}, "\x7f": {"S": "z"}, "a\u2028b": {"S": "w"}, "a\tb": {"S": "t"}}],
    "beyond ASCII": [
        {"größe": {"S": "y"}, "価格": {"N": "1.000000000"}, "😀": {"S": "z"}, "²": {"S": "2"}, "a\u0301": {"S": "é"}}
    ],
    "reserved": [
        {name: {"S": "y"} for name in ("_file", "_pos", "_partition", "_row_id", "_deleted", "_offset", "_KEY")}
    ],
    "case alone": [{"Name": {"S": "y"}, "name": {"S": "z"}, "NAME": {"S": "w"}, "İ": {"S": "1"}, "i̇": {"S": "2"}}],
    "too long": [{"x" * 256: {"S": "y"}, "ä" * 128: {"S": "z"}, "y" * 60_000: {"S": "w"}}],
    "words of SQL": [
        {name: {"S": "y"} for name in ("select", "table", "null", "true", "order by", "a'b", "a`b", "a;b")}
    ],
    "thousands": [{f"n{n}": {"S": str(n)} for n in range(2_500)}],
    "another type": [{"n": {"N": "1.000000000"}}, {"n": {"S": "x"}}, {"n": {"SS": ["x"]}}, {"n": {"NULL": True}}],
    "quotes and backslashes": [{'a"b': {"S": "y"}, "a\\b": {"S": "z"}}],
}


@pytest.mark.parametrize("mode", ["append", "upsert"])
@pytest.mark.parametrize("names", POISON)
def test_every_row_is_stored_whatever_its_attributes_are_called(
    tmp_path: Path, names: str, mode: Literal["append", "upsert"]
) -> None:
    items = POISON[names]
    owner = Owner(iceberg(tmp_path, mode), {n: change(n, item) for n, item in enumerate(items)}, 0)
    carry(owner)
    assert not owner.rejected
    wanted = {f"e{n}": {"id": {"S": str(n)}, **item} for n, item in enumerate(items)}
    assert json.loads(json.dumps(stored(owner), default=str)) == wanted


names = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(
    ["a.b", "a", "A", "a-b", "a_x2Db", "_1", "1", "_x2D", "-", "_file", "element", "a.element", "é", "É"]
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.dictionaries(names.filter(lambda name: name != "id"), st.just({"S": "v"}), max_size=4), max_size=4))
def test_no_names_make_a_table_refuse_a_row(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]]
) -> None:
    topic = {n: change(n, item) for n, item in enumerate([{}, *items])}
    owner = Owner(iceberg(tmp_path_factory.mktemp("names"), "append"), topic, 0)
    carry(owner)
    assert not owner.rejected
    assert stored(owner) == {f"e{n}": {"id": {"S": str(n)}, **item} for n, item in enumerate([{}, *items])}


def test_columns_must_differ_as_files_spell_them() -> None:
    assert spelling("a-b") == spelling("a_x2Db") == spelling("A-B") != ""
    assert {spelling(name) for name in ("", "a.b", "a\tb", "x" * 256, "_partition", "_File")} == {""}


@pytest.mark.parametrize("table", ["../../outside", "a/b", "a b!", "..", "x" * 300, "a\x00b", "größe"])
def test_a_table_whose_name_no_catalog_takes_is_a_dead_letter_and_the_others_continue(
    tmp_path: Path, table: str
) -> None:
    topic = {0: change(0, {}), 1: change(1, {}, table), 2: change(2, {})}
    owner = Owner(iceberg(tmp_path, "append"), topic, 0)
    carry(owner)
    assert [offset for offset, _ in owner.rejected] == [1]
    assert "a catalog does not accept the table name" in str(owner.rejected[0][1])
    assert sorted(stored(owner)) == ["e0", "e2"]
    assert {path.name for path in tmp_path.iterdir()} == {"catalog.db", "wh"}


# -- lake files -------------------------------------------------------------------------------------------------------


def files(directory: Path, path: str = "table={table}/date={date}") -> Any:
    schemas: dict[str, TableSchema] = {}

    def grow(table: str, schema: TableSchema) -> TableSchema:
        schemas[table] = schemas.get(table, TableSchema()).merge(schema)
        return schemas[table]

    layout = ColumnsLayout(lambda table: schemas.get(table, TableSchema()), grow)

    def make(clock: Clock) -> Sink:
        objects, rotation = Objects(f"file://{directory}"), Rotation(1_000, 1 << 27, 5, 0)
        return LakeSink(objects, layout, {"s": PARTITION.topic}, rotation, path=path, clock=clock)

    return make


TABLES = [
    "../../../outside",
    "a/b",
    "..",
    ".",
    "a b!",
    "x" * 300,
    "é" * 300,
    "a\x00b\n",
    "größe",
    "~",
    "%2F",
    "a+b",
    "ok.-_1",
]


@pytest.mark.parametrize("path", ["table={table}/date={date}", "{table}/{op}", "{table}"])
def test_no_name_of_a_table_leaves_the_directory_of_the_lake_or_stops_it(tmp_path: Path, path: str) -> None:
    lake = tmp_path / "one" / "lake"
    topic = {n: change(n, {}, table) for n, table in enumerate(TABLES)}
    owner = Owner(files(lake, path), topic, 0)
    carry(owner)
    assert not owner.rejected
    assert {one.name for one in tmp_path.iterdir()} == {"one"}
    assert {one.name for one in (tmp_path / "one").iterdir()} == {"lake"}
    found = [pq.read_table(io.BytesIO(one.read_bytes())) for one in lake.rglob("*.parquet")]
    assert sorted(event for one in found for event in one.column("_event_id").to_pylist()) == sorted(
        f"e{n}" for n in range(len(TABLES))
    )


def test_names_in_paths_are_percent_encoded_and_long_ones_end_in_a_digest() -> None:
    assert escaped_path("Orders-2.eu_1") == "Orders-2.eu_1"
    assert (escaped_path("../a b"), escaped_path(".."), escaped_path("a%")) == ("..%2Fa%20b", "%2E%2E", "a%25")
    assert escaped_path("x" * 255) == f"{'x' * 160}~{escaped_path('x' * 255)[161:]}"
    assert len({escaped_path("x" * 255), escaped_path("x" * 254), escaped_path("x" * 200)}) == 3
    directories = Directories("{table}/{sink}/{op}/{year}", "s")
    assert directories.of("a/../../b", AT * 1_000_000, "c") == "a%2F..%2F..%2Fb/s/c/2025"


def test_lone_surrogates_stop_neither_files_nor_tables(tmp_path: Path) -> None:
    odd = {"a\ud800": {"S": "y"}, "v": {"S": "\udfff"}}
    topic = {0: change(0, {"v": {"S": "x"}}), 1: change(1, odd), 2: change(2, {}, "t\ud800"), 3: change(3, {})}
    raw = {**topic, 1: change(1, odd, ensure_ascii=False)}
    for name, changes in (("escaped", topic), ("as bytes", raw)):
        for make in (files(tmp_path / name / "files"), iceberg_in(tmp_path / name / "table")):
            owner = Owner(make, changes, 0)
            carry(owner)
            left_out = {offset for offset, _ in owner.rejected}
            assert left_out <= {1, 2}
            assert 2 in left_out


def iceberg_in(directory: Path) -> Any:
    directory.mkdir(parents=True)
    return iceberg(directory, "append")


def test_a_row_of_which_no_table_can_be_made_is_a_dead_letter_and_the_others_continue(tmp_path: Path) -> None:
    topic = {n: change(n, {}) for n in range(8)}
    owner = Owner(files(tmp_path), topic, 0)
    layout = cast("LakeSink", owner.sink).layout
    table = layout.table

    def picky(name: str, partition: int, rows: Any) -> Any:
        if {0, 5} & set(rows.offsets):
            raise ValueError("no table takes this")
        return table(name, partition, rows)

    layout.table = picky  # type: ignore[method-assign]
    carry(owner)
    assert sorted(offset for offset, _ in owner.rejected) == [0, 5]
    found = [pq.read_table(io.BytesIO(one.read_bytes())) for one in tmp_path.rglob("*.parquet")]
    assert sorted(offset for one in found for offset in one.column("_offset").to_pylist()) == [1, 2, 3, 4, 6, 7]
