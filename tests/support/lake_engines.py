"""Engines that read lakes and were written by others, each with its own code for Parquet; all give rows as dictionaries."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chdb
import datafusion
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
Where = str | list[str]
"""A directory, or files."""


def files_of(where: Where) -> list[str]:
    """Return the files."""
    return sorted(map(str, Path(where).rglob("*.parquet"))) if isinstance(where, str) else where


def _glob(where: Where) -> Where:
    return f"{where}/**/*.parquet" if isinstance(where, str) else where


def _duckdb(where: Where) -> Rows:
    found = duckdb.connect().read_parquet(_glob(where), union_by_name=True)
    return _plain(found.to_arrow_table())


def _pyarrow(where: Where) -> Rows:
    schemas = [pq.read_schema(file) for file in files_of(where)]
    schema = pa.unify_schemas([schema.remove_metadata() for schema in schemas])  # raises where types differ
    return _plain(ds.dataset(where, schema=schema).to_table())


def _polars(where: Where) -> Rows:
    files = files_of(where)
    schema: dict[str, Any] = {}
    for file in files:
        schema |= pl.read_parquet_schema(file)
    found = pl.scan_parquet(_glob(where), schema=schema, missing_columns="insert", hive_partitioning=False)
    return _plain(found.collect().to_arrow())


def _datafusion(where: Where) -> Rows:
    with _directory(where) as directory:
        return _plain(datafusion.SessionContext().read_parquet(directory).to_arrow_table())


def _clickhouse(where: Where) -> Rows:
    wanted = {one.name: one.type for file in files_of(where) for one in pq.read_schema(file)}
    asked = "schema_inference_mode = 'union', output_format_arrow_string_as_string = 0"  # else bytes become text
    with _directory(where) as directory:
        query = f"SELECT * FROM file('{directory}/**/*.parquet', 'Parquet') SETTINGS {asked}"  # noqa: S608
        rows = _plain(chdb.query(query, "ArrowTable"))  # type: ignore[no-untyped-call]

    def plain(name: str, value: Any) -> Any:
        if value == []:  # a list of ClickHouse cannot be null
            return None
        kind = wanted.get(name, pa.string())
        if pa.types.is_list(kind):
            return [plain("", one) if pa.types.is_string(kind.value_type) else one for one in value]
        return value.decode() if isinstance(value, bytes) and pa.types.is_string(kind) else value

    return [{name: plain(name, value) for name, value in row.items()} for row in rows]


@contextmanager
def _directory(where: Where) -> Iterator[str]:
    """Give files as a directory of their own, to what takes no list of them."""
    if isinstance(where, str):
        yield where
        return
    with tempfile.TemporaryDirectory() as directory:
        for number, file in enumerate(where):
            (Path(directory) / f"{number}.parquet").symlink_to(file)
        yield directory


def _plain(table: pa.Table) -> Rows:
    return list(table.to_pylist())


FILES: Mapping[str, Callable[[Where], Rows]] = {
    "duckdb": _duckdb,
    "pyarrow": _pyarrow,
    "polars": _polars,
    "datafusion": _datafusion,
    "clickhouse": _clickhouse,
}
"""What reads files; Spark needs a process of its own."""
