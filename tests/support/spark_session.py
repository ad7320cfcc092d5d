"""Spark with the Iceberg runtime, for tests: pyspark of the lock, the jar from Maven Central."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwater.lab.cache import cached, copy_jars, is_cached

POM = Path(__file__).parent / "spark" / "pom.xml"
CACHE = "iceberg-spark-4.0-1.10.1"
CATALOG = "spark_lake"


def missing() -> str | None:
    """Return why it cannot run on this machine, in words; None if it can."""
    if shutil.which("java") is None:
        return "there is no Java on PATH"
    if not is_cached(CACHE, POM) and shutil.which("mvn") is None:
        return "there is no Maven on PATH to fetch Iceberg's runtime with"
    return None


@contextmanager
def spark(directory: Path) -> Iterator[Any]:
    """Run Spark until the end of the block, on one core; its catalog `spark_lake` is the directory."""
    from pyspark.sql import SparkSession  # noqa: PLC0415 - it takes long

    jars = cached(CACHE, POM, lambda into: copy_jars(POM, into))
    settings = {
        "spark.jars": ",".join(map(str, sorted(jars.glob("*.jar")))),
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        f"spark.sql.catalog.{CATALOG}": "org.apache.iceberg.spark.SparkCatalog",
        f"spark.sql.catalog.{CATALOG}.type": "hadoop",
        f"spark.sql.catalog.{CATALOG}.warehouse": f"file://{directory}/spark",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "1g",
    }
    builder = SparkSession.builder.master("local[1]").appName("headwater")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        yield session
    finally:
        session.stop()
        gc.collect()  # pyspark leaves sockets open: here, where that is expected, and not in some later test
