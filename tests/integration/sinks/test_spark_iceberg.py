"""Spark reads the Iceberg tables, every value of them, and rewrites them; a worker goes on with what Spark has left."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support import spark_session as sparking
from support.iceberg_truth import CHANGES, MODES, bring, kept_table, require, sink_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # pyspark's sockets
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def _there() -> None:
    why = sparking.missing()
    if why is not None:
        (pytest.fail if os.environ.get("HEADWATER_REQUIRE_KAFKA") == "1" else pytest.skip)(why)


def plain(value: Any) -> Any:
    """Return a value of Spark as pyiceberg gives it."""
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return [plain(one) for one in value] if isinstance(value, list) else value


def read_by(spark: Any, table: str) -> list[dict[str, Any]]:
    return [{name: plain(value) for name, value in row.asDict().items()} for row in spark.table(table).collect()]


def test_spark_reads_every_value_and_a_worker_continues_after_spark_has_rewritten_the_files(tmp_path: Path) -> None:
    sinks = {mode: kept_table(tmp_path / mode, mode) for mode in MODES}
    with sparking.spark(tmp_path) as spark:
        for mode, sink in sinks.items():
            table = sink.catalog.load_table(("n", "t"))
            name = f"{sparking.CATALOG}.n.{mode}"
            register = f"CALL {sparking.CATALOG}.system.register_table(table => 'n.{mode}', metadata_file => "
            spark.sql(f"{register}'{table.metadata_location}')").collect()
            require(read_by(spark, name), table, mode, CHANGES)

            options = "map('rewrite-all', 'true')"
            call = f"CALL {sparking.CATALOG}.system.rewrite_data_files(table => 'n.{mode}', options => {options})"
            assert spark.sql(call).collect()[0]["rewritten_data_files_count"] > 0
            log = spark.table(f"{name}.metadata_log_entries").orderBy("timestamp").collect()
            forked = sink_of(tmp_path / mode, mode, "forked")
            forked.catalog.register_table(("n", "t"), log[-1]["file"])
            bring(forked, CHANGES, CHANGES + 50, flush=25)
            table = forked.catalog.load_table(("n", "t"))
            spark.sql(f"{register.replace(f'n.{mode}', f'n.{mode}_on')}'{table.metadata_location}')").collect()
            require(read_by(spark, f"{name}_on"), table, mode, CHANGES + 50)
