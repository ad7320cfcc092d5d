"""The lake's files: typed columns, directories, manifests; checking and compacting them."""

from __future__ import annotations

import base64
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Message
from hypothesis import example, given, settings
from hypothesis import strategies as st
from obstore.exceptions import UnauthenticatedError
from support.sink_worker import PARTITION, Clock, Owner

from pipeline.errors import TransientError
from pipeline.sinks.lake import manifests, paths, series
from pipeline.sinks.lake.compact import compact
from pipeline.sinks.lake.layouts.columns import ColumnsLayout, TableSchema, item_of, step_of, united
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.paths import origin_of
from pipeline.sinks.lake.sink import LakeSink, Rotation
from pipeline.sinks.lake.verify import verify_lake
from pipeline.sinks.rows import RowReader, Rows

KEY = {"k": {"S": "1"}}


class Known:
    """Schemas in memory."""

    def __init__(self) -> None:
        self.all: dict[str, TableSchema] = {}

    def of(self, table: str) -> TableSchema:
        return self.all.get(table, TableSchema())

    def grow(self, table: str, schema: TableSchema) -> TableSchema:
        self.all[table] = self.of(table).merge(schema)
        return self.all[table]


def event(offset: int, item: Any, name: str = "INSERT", at: float = 0.0, **style: Any) -> bytes:
    body = {"Keys": KEY, "SequenceNumber": str(offset), "ApproximateCreationDateTime": at}
    if item is not None:
        body["NewImage"] = item
    arn = "arn:aws:dynamodb:eu-west-1:1:table/T/stream/x"
    return json.dumps(
        {"eventID": f"e{offset}", "eventName": name, "eventSourceARN": arn, "dynamodb": body}, **style
    ).encode()


def rows(*items: Any, name: str = "INSERT", **style: Any) -> Rows:
    """Return the rows of changes that leave these items; `style` is how their JSON is written."""
    values = [event(n, item, name, **style) for n, item in enumerate(items)]
    messages = [Message(*PARTITION, offset=n, key=b"k", value=value) for n, value in enumerate(values)]
    found = Rows()
    for piece, rejected in RowReader().read(messages):
        assert not rejected
        found.extend(piece)
    return found


def layout() -> ColumnsLayout:
    known = Known()
    return ColumnsLayout(known.of, known.grow)


def comparable(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item in which equal numbers are equal."""
    return {name: {"N": Decimal(value["N"])} if _is_number(value) else value for name, value in item.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"N"} and any(map(str.isdigit, str(value["N"])))


numbers = st.one_of(
    st.integers(-(10**38) + 1, 10**38 - 1).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**20), max_value=10**20).map(str),
    st.tuples(st.integers(-(10**37), 10**37), st.integers(-120, 80)).map(lambda pair: f"{pair[0]}E{pair[1]}"),
)
binary = st.binary(min_size=1, max_size=9).map(lambda value: base64.b64encode(value).decode())
text = st.text(st.characters(codec="utf-8"), max_size=8)
values: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.one_of(
        text.map(lambda value: {"S": value}),
        numbers.map(lambda value: {"N": value}),
        st.booleans().map(lambda value: {"BOOL": value}),
        st.just({"NULL": True}),
        binary.map(lambda value: {"B": value}),
        st.lists(text, min_size=1, max_size=3, unique=True).map(lambda value: {"SS": value}),
        st.lists(numbers, min_size=1, max_size=3, unique=True).map(lambda value: {"NS": value}),
        st.lists(binary, min_size=1, max_size=3, unique=True).map(lambda value: {"BS": value}),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda value: {"L": value}),
        st.dictionaries(text, inner, max_size=3).map(lambda value: {"M": value}),
    ),
    max_leaves=4,
)
names = st.one_of(st.sampled_from(["a", "A", "b", "_op", "_overflow", "", "a.b"]), text)
items = st.lists(st.dictionaries(names, values, max_size=5), min_size=1, max_size=6)


as_aws_writes_it: dict[str, Any] = {"separators": (",", ":"), "ensure_ascii": False}
styles = st.sampled_from([as_aws_writes_it, {"separators": (",", ":")}, {}, {"ensure_ascii": False}])
tagged = st.dictionaries(
    st.sampled_from(["S", "N", "B", "SS", "NULL", "M", "x", ""]), st.sampled_from(["", "1", "x", [], {}])
)
odd = st.one_of(
    tagged, st.sampled_from([None, 5, "", "null", [], [1], {}, {"S": None}, {"BOOL": None}, {"N": "x"}, {"B": "_"}])
)
"""What DynamoDB never writes."""


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@example([{"a": {}}, {"a": {"S": "", "N": ""}}], as_aws_writes_it)
@given(st.lists(st.dictionaries(names, st.one_of(values, odd), max_size=4), min_size=1, max_size=6), styles)
def test_what_dynamodb_never_writes_is_kept_too(some: list[dict[str, Any]], style: dict[str, Any]) -> None:
    known = Known()
    table = ColumnsLayout(known.of, known.grow).table("T", 0, rows(*some, **style))
    assert [comparable(item_of(one, known.of("T").columns)) for one in table.to_pylist()] == list(map(comparable, some))


@pytest.mark.parametrize("image", [[], [{"a": {"S": "x"}}], "x", 5])
def test_an_image_that_is_not_an_item_is_in_the_overflow(image: Any) -> None:
    (found,) = layout().table("T", 0, rows(image)).to_pylist()
    assert item_of(found, {}) == {"": image}


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(items, min_size=1, max_size=4), styles)
def test_what_is_read_back_is_what_was_written(batches: list[list[dict[str, Any]]], style: dict[str, Any]) -> None:
    known = Known()
    columns = ColumnsLayout(known.of, known.grow)
    tables = []
    for batch in batches:
        table = columns.table("T", 0, rows(*batch, **style))
        out = io.BytesIO()
        pq.write_table(table, out)
        tables.append(pq.read_table(out))
    written = [comparable(item) for batch in batches for item in batch]
    for found in (
        [one for table in tables for one in table.to_pylist()],  # file by file, as they were written
        [one for table in columns.align("T", *tables) for one in table.to_pylist()],  # with the columns of the last
        united(tables).to_pylist(),  # compacted
    ):
        assert [comparable(item_of(one, known.of("T").columns)) for one in found] == written


digits = st.text("0123456789", min_size=1, max_size=38)
spelled = st.one_of(
    digits,
    st.tuples(digits, digits).map(".".join),
    st.tuples(digits, st.integers(-130, 126)).map(lambda pair: f"{pair[0]}E{pair[1]}"),
    st.tuples(digits, digits, st.integers(-130, 126)).map(lambda one: f"-{one[0]}.{one[1]}E{one[2]:+d}"),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decimal", "int", "wide", "number"])  # all but the first of the version before
@settings(max_examples=1_000, deadline=None)
@given(first=st.lists(spelled, max_size=3), number=spelled)
def test_no_number_becomes_another_one(kind: Any, first: list[str], number: str) -> None:
    known = Known()
    known.all["T"] = TableSchema({"n": kind})
    columns = ColumnsLayout(known.of, known.grow)
    for some in ([*first, number], [number]):
        table = columns.table("T", 0, rows(*({"n": {"N": one}} for one in some), **as_aws_writes_it))
        found = [comparable(item_of(one, known.of("T").columns)) for one in table.to_pylist()]
        assert found == [{"n": {"N": Decimal(one)}} for one in some]


@pytest.mark.parametrize("number", ["1.69401616433803583471E-28", "26105066394835336004015303871634325818", "1E68"])
def test_what_arrow_would_make_another_number_of_is_kept(number: str) -> None:
    known = Known()
    columns = ColumnsLayout(known.of, known.grow)
    for some in (["0.5"], [number]):
        (found,) = columns.table("T", 0, rows({"n": {"N": some[0]}}, **as_aws_writes_it)).to_pylist()
        assert comparable(item_of(found, known.of("T").columns)) == {"n": {"N": Decimal(some[0])}}


def test_a_column_stays_what_it_was_decided_to_be_and_one_of_names_alike_has_it() -> None:
    first = TableSchema({"a": "string"})
    merged = first.merge(TableSchema({"a": "decimal", "A": "string", "b": "bool", "B": "map"}))
    assert merged.columns == {"a": "string", "b": "bool"}
    assert merged.merge(TableSchema({"B": "map"})) is merged


def test_an_attribute_that_the_directories_have_is_in_the_overflow(tmp_path: Path) -> None:
    known = Known()
    columns = ColumnsLayout(known.of, known.grow)
    known.all["T"] = TableSchema({"date": "string"})  # of another lake, with other directories
    path = "table={table}/Date={date}"
    lake = LakeSink(
        Objects(f"file://{tmp_path}"), columns, {"s": PARTITION.topic}, Rotation(1, 1, 60, 0), path=path, clock=Clock()
    )
    lake.open(PARTITION, 0)
    item = {"date": {"S": "1999"}, "TABLE": {"S": "kitchen"}, "hour": {"N": "25"}}
    (found,) = columns.table("T", 0, rows(item)).to_pylist()
    assert json.loads(found["_overflow"]) == {"date": {"S": "1999"}, "TABLE": {"S": "kitchen"}}
    assert found["hour"] == 25


def test_a_row_tells_its_topic_and_its_replay() -> None:
    headers = [("event_id", b"e"), ("sequence", b"1")]
    some = rows({"a": {"S": "x"}}, {"a": {"S": "y"}})
    for place, more in enumerate(([], [("replay", b"r1"), ("mirrored_from", b"c")])):
        value = cast("bytes", some.records[place].value())
        some.records[place] = Message(
            *PARTITION, offset=place, key=b"k", value=value, headers=cast("Any", [*headers, *more])
        )
    for made, prefix in ((layout(), "_"), (EnvelopeLayout(), "")):
        found = made.table("T", 0, some).to_pylist()
        assert [(row[f"{prefix}topic"], row[f"{prefix}replay"]) for row in found] == [
            (PARTITION.topic, None),
            (PARTITION.topic, "r1"),
        ]


def test_a_lake_keeps_the_directories_that_it_has_begun_with(tmp_path: Path) -> None:
    new, old = Objects(f"file://{tmp_path}/new"), Objects(f"file://{tmp_path}/old")
    old.create("table=T/date=2026-01-01/hour=00/_manifest.json", b"{}")
    assert series.series_path(new, "") == paths.DEFAULT
    assert series.series_path(new, "{table}") == "{table}"
    new.create("table=T/x.parquet", b"")  # whatever comes later
    assert series.series_path(new, "") == paths.DEFAULT
    assert series.series_path(old, "") == paths.FORMER


@pytest.mark.parametrize(
    ("number", "step"),
    [
        ("1", "int"),
        ("9223372036854775807", "int"),
        ("9223372036854775808", "decimal"),
        ("1E+3", "int"),
        ("1.50", "decimal"),
        ("0.0000000001", "wide"),
        ("1E+30", "wide"),
        ("1E+100", "number"),
        ("1E-39", "number"),
    ],
)
def test_a_number_is_on_the_lowest_step_that_loses_nothing(number: str, step: str) -> None:
    assert step_of(number) == step


def test_a_deletion_has_the_columns_of_its_key() -> None:
    columns = layout()
    columns.table("T", 0, rows({**KEY, "n": {"N": "1"}}))
    (found,) = columns.table("T", 0, rows(None, name="REMOVE")).to_pylist()
    assert (found["_op"], found["k"], found["n"]) == ("d", "1", None)


def test_names_that_are_data_do_not_become_columns_without_end() -> None:
    columns = layout()
    table = columns.table("T", 0, rows(*({f"name-{n}": {"S": str(n)}} for n in range(1_100))))
    assert table.num_columns < 1_020
    assert json.loads(table.to_pylist()[1_099]["_overflow"]) == {"name-1099": {"S": "1099"}}


def test_a_number_has_one_type_in_all_files_and_what_does_not_fit_is_in_the_overflow(tmp_path: Path) -> None:
    columns = layout()
    for n, amount in enumerate(("7", "7.25", "1" * 38)):
        pq.write_table(columns.table("T", 0, rows({"amount": {"N": amount}})), tmp_path / f"{n}.parquet")
    query = f"select sum(amount)::varchar from read_parquet('{tmp_path}/*.parquet', union_by_name = true)"  # noqa: S608
    assert duckdb.sql(query).fetchall() == [("14.250000000",)]
    files = [pq.read_table(path) for path in sorted(tmp_path.iterdir())]
    assert {file.schema.field("amount").type for file in files} == {pa.decimal128(38, 9)}
    assert json.loads(files[2].column("_overflow")[0].as_py()) == {"amount": {"N": "1" * 38}}


# -- files ------------------------------------------------------------------------------------------------------------


def written(directory: Path, changes: int = 12, *, flush_every: int = 2) -> tuple[Objects, Owner]:
    """Return a lake in a directory with several small files."""
    objects = Objects(f"file://{directory}")
    topic = {
        n: Message(*PARTITION, offset=n, key=b"k", value=event(n, {**KEY, "n": {"N": str(n)}}, at=3600.0 * (n // 6)))
        for n in range(changes)
    }
    columns = layout()

    def lake(clock: Clock) -> LakeSink:
        rotation = Rotation(flush_every, 1 << 20, 60, 0)
        path = "table={table}/hour={hour}"
        return LakeSink(objects, columns, {"s": PARTITION.topic}, rotation, path=path, clock=clock)

    owner = Owner(lake, topic, 0)
    for _ in range(changes):
        owner.slice(flush_every)
        owner.work()
    assert owner.slice(0) is None
    return objects, owner


def test_a_lake_is_compared_with_its_manifests(tmp_path: Path) -> None:
    objects, _ = written(tmp_path)
    checked = verify_lake(objects)
    assert (checked.problems, checked.files, checked.rows, checked.manifests) == ((), 6, 12, 2)
    assert verify_lake(objects, "table=T/hour=01").rows == 6


@pytest.mark.parametrize("damage", ["delete", "alter", "add", "forget"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    objects, _ = written(tmp_path)
    path = next(path for path in objects.paths() if path.endswith(f"{4:020d}.parquet"))
    if damage == "delete":
        objects.delete(path)
    elif damage == "alter":
        content = bytearray(objects.read(path))
        content[30] ^= 1
        objects.delete(path)
        objects.create(path, bytes(content))
    elif damage == "add":
        objects.create("table=T/hour=00/stray.parquet", b"PAR1")
    else:
        objects.delete(manifests.entry_of(path))
    problems = verify_lake(objects).problems
    expected = {"delete": "missing", "alter": "altered", "add": "not listed", "forget": "not listed"}[damage]
    assert expected in {problem.what for problem in problems}
    if damage == "forget":
        assert any(problem.detail == "offsets 4 to 5 are in no file" for problem in problems)


def test_small_files_become_few_large_ones(tmp_path: Path) -> None:
    objects, _ = written(tmp_path)
    rows = {path: objects.read(path) for path in objects.paths() if path.endswith(".parquet")}
    before = pa.concat_tables([pq.read_table(io.BytesIO(content)) for content in rows.values()])
    done = list(compact(objects, lambda _topic, _partition: 12, size=1 << 20, older_than_us=1 << 60))
    assert [(one.before, one.after, one.rows) for one in done] == [(3, 1, 6), (3, 1, 6)]
    checked = verify_lake(objects)
    assert (checked.problems, checked.files, checked.rows) == ((), 2, 12)
    after = united([pq.read_table(io.BytesIO(objects.read(p))) for p in objects.paths() if p.endswith(".parquet")])
    assert sorted(after.column("_offset").to_pylist()) == sorted(before.column("_offset").to_pylist())
    assert list(compact(objects, lambda _topic, _partition: 12, size=1 << 20, older_than_us=1 << 60)) == []


def test_what_may_be_tried_again_or_is_young_is_not_compacted(tmp_path: Path) -> None:
    objects, _ = written(tmp_path)
    assert list(compact(objects, lambda _topic, _partition: 2, size=1 << 20, older_than_us=1 << 60)) == []
    assert list(compact(objects, lambda _topic, _partition: 12, size=1 << 20, older_than_us=-1)) == []


def test_what_a_run_did_not_come_to_delete_is_deleted_by_the_next(tmp_path: Path) -> None:
    objects, _ = written(tmp_path)
    kept = {path: objects.read(path) for path in objects.paths("table=T/hour=00") if path.endswith(".parquet")}
    list(compact(objects, lambda _topic, _partition: 12, size=1 << 20, older_than_us=1 << 60))
    for path, content in kept.items():
        objects.create(path, content)
    assert {problem.what for problem in verify_lake(objects).problems} == {"not listed"}
    list(compact(objects, lambda _topic, _partition: 12, size=1 << 20, older_than_us=1 << 60))
    assert verify_lake(objects).problems == ()


def test_a_directory_tells_of_gaps_once(tmp_path: Path) -> None:
    objects, _ = written(tmp_path)
    gap, told = manifests.ManifestGap("T", "shard-1", "5", None, "trimmed", 1.5), set[str]()
    file = manifests.read_manifests(objects, "table=T/hour=00")[0].files[0]
    before = objects.requests.put
    for _ in range(3):
        manifests.add(objects, file, [gap], told)
    assert objects.requests.put - before == 4, "the entry thrice, the gap once"
    manifests.add(objects, file, [gap], set())  # another worker
    (found,) = manifests.read_manifests(objects, "table=T/hour=00")
    assert found.gaps == [gap]
    assert verify_lake(objects).gaps == 1


def test_a_file_name_says_with_which_record_it_begins() -> None:
    name = "table=T/p.sink.s+9zrC-LVLQ_iJHcE8wDcuEw+3+00000000000000000042.parquet"
    assert origin_of(name) == ("p.sink.s", 3, 42, "9zrC-LVLQ_iJHcE8wDcuEw")
    assert origin_of("table=T/p.sink.s+3+00000000000000000042.parquet") == ("p.sink.s", 3, 42, "")
    assert origin_of("table=T/_manifest.json") is None


def test_credentials_of_the_lake_that_fail_may_work_again(tmp_path: Path) -> None:
    error = UnauthenticatedError("The operation lacked valid authentication credentials\nDebug source: x")
    told = Objects(f"file://{tmp_path}")._explain("a/b", error)
    assert isinstance(told, TransientError)
    assert "\n" not in str(told)
