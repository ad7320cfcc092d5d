"""What makes a lake tables of an engine: DuckDB runs its own; the others are looked at, Spark's are run elsewhere."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from confluent_kafka import Message
from faust.types import TP
from support.sink_worker import Clock

from pipeline.errors import UsageError
from pipeline.sinks.lake import ddl as lake_ddl
from pipeline.sinks.lake import paths
from pipeline.sinks.lake.layouts.columns import ColumnsLayout, TableSchema
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.sink import LakeSink, Rotation

ITEMS: list[dict[str, Any]] = [
    {"id": {"S": "1"}, "price": {"N": "10"}},
    {"id": {"S": "2"}, "price": {"N": "10.5"}, "a b": {"S": "x"}, "größe": {"N": "1"}, "tags": {"SS": ["s"]}},
]


def lake(directory: Path, path: str = "") -> Objects:
    """Return a lake with two files of the table orders, the second of more columns."""
    objects, schemas = Objects(f"file://{directory}"), dict[str, TableSchema]()

    def grow(table: str, schema: TableSchema) -> TableSchema:
        schemas[table] = schemas.get(table, TableSchema()).merge(schema)
        return schemas[table]

    layout = ColumnsLayout(lambda table: schemas.get(table, TableSchema()), grow)
    tp = TP("p.sink.s", 0)
    sink = LakeSink(objects, layout, {"s": tp.topic}, Rotation(1, 1 << 20, 0, 0), path=path, clock=Clock())
    for offset, item in enumerate(ITEMS):
        body: dict[str, Any] = {"Keys": {"id": item["id"]}, "NewImage": item, "SequenceNumber": "1"}
        body["ApproximateCreationDateTime"] = 1_764_500_000.0 + 4_000 * offset
        arn = "arn:aws:dynamodb:eu-west-1:1:table/orders/stream/x"
        value = {"eventID": f"e{offset}", "eventName": "INSERT", "eventSourceARN": arn, "dynamodb": body}
        writer = sink.open(tp, offset)
        writer.add([Message(*tp, offset=offset, key=b"k", value=json.dumps(value).encode())], offset + 1)
        writer.flush()
    return objects


def made(engine: lake_ddl.Engine, objects: Objects, path: str = paths.DEFAULT) -> str:
    (statement,) = lake_ddl.statements(engine, lake_ddl.lake_tables(objects, path))
    return statement


def test_duckdb_reads_the_table_that_its_statement_makes(tmp_path: Path) -> None:
    connection = duckdb.connect()
    connection.execute(made("duckdb", lake(tmp_path)))
    found = connection.execute('SELECT id, price, "a b", größe, tags, changed_hour FROM orders ORDER BY id').fetchall()
    assert [(*row[:5], int(row[5])) for row in found] == [
        ("1", Decimal(10), None, None, None, 10),
        ("2", Decimal("10.5"), "x", Decimal(1), ["s"], 12),
    ]


def test_athena_has_projected_directories_and_gets_no_name_that_it_does_not_take(tmp_path: Path) -> None:
    statement = made("athena", lake(tmp_path))
    assert statement.startswith("-- Without a name or a type here: 'a b', 'größe'\n")
    assert "`price` decimal(38, 9)" in statement
    assert "`tags` array<string>" in statement
    assert "PARTITIONED BY (`changed_date` string, `changed_hour` string)" in statement
    assert "'projection.changed_hour.digits' = '2'" in statement
    assert "/source_table=orders/changed_date=${changed_date}/changed_hour=${changed_hour}/'" in statement


def test_trino_and_spark_have_all_columns_quoted(tmp_path: Path) -> None:
    objects = lake(tmp_path)
    assert '"a b" VARCHAR' in made("trino", objects)
    assert '"tags" ARRAY(VARCHAR)' in made("trino", objects)
    assert "`größe` DECIMAL(38, 9)" in made("spark", objects)


def test_a_sink_and_a_table_make_a_table(tmp_path: Path) -> None:
    path = "{sink}/t={table}/on={date}"
    (found,) = lake_ddl.lake_tables(lake(tmp_path, path), path)
    assert (found.name, found.keys) == ("orders_s", [("on", "date")])


@pytest.mark.parametrize("path", ["{date}/{table}", "{table}/{hour}"])
def test_directories_that_no_engine_takes_for_a_table_are_an_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError):
        list(lake_ddl.lake_tables(lake(tmp_path, path), path))


@pytest.mark.parametrize("engine", lake_ddl.ENGINES)
def test_an_iceberg_table_is_named_with_its_metadata(engine: lake_ddl.Engine) -> None:
    table = lake_ddl.Registered("ns", "orders", "s3://b/w/ns.db/orders/metadata/00001-a.metadata.json")
    (statement,) = lake_ddl.registrations(engine, [table])
    assert "orders" in statement
    assert engine == "athena" or "00001-a.metadata.json" in statement
