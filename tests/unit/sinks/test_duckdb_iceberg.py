"""DuckDB reads the Iceberg tables, every value of them, by an Iceberg library of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import duckdb
import pytest
from support.iceberg_truth import CHANGES, MODES, Mode, kept_table, require

from pipeline.sinks.lake import ddl as lake_ddl


def extension(name: str) -> str:
    """Return the file of an extension, which the lock brings: DuckDB's own way is a download."""
    spec = find_spec(f"duckdb_extension_{name}")
    assert spec is not None
    assert spec.origin is not None
    (found,) = Path(spec.origin).parent.glob(f"extensions/*/{name}.duckdb_extension")
    return str(found)


@pytest.mark.parametrize("mode", MODES)
def test_duckdb_reads_every_value(tmp_path: Path, mode: Mode) -> None:
    table = kept_table(tmp_path / "lake", mode).catalog.load_table(("n", "t"))
    with duckdb.connect() as connection:
        for name in ("avro", "iceberg"):
            connection.load_extension(extension(name))
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.execute("SELECT * FROM iceberg_scan(?)", [table.metadata_location]).to_arrow_table()
    require(rows.to_pylist(), table, mode, CHANGES)


def test_duckdb_reads_the_view_that_the_lake_prints(tmp_path: Path) -> None:
    catalog = kept_table(tmp_path / "lake", "append").catalog
    (statement,) = lake_ddl.registrations("duckdb", lake_ddl.registered(catalog.properties, "n"))
    with duckdb.connect() as connection:
        for name in ("avro", "iceberg"):
            connection.load_extension(extension(name))
        connection.execute(statement.partition("\n")[2])  # without the download of the extension
        found = connection.execute("SELECT count(*) FROM t").fetchall()
    assert found == [(CHANGES,)]
