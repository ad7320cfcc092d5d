"""What makes a lake tables of an engine: the statements, as text. Nothing is run here.

The columns of a table of files are those that its newest files have, and a file has all columns that were known when it was
written. What an engine has no type or no name for stays out of the statement, and is named in a comment.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.sinks.lake.layouts.columns import united
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.paths import origin_of

Engine = Literal["athena", "duckdb", "spark", "trino"]
ENGINES: tuple[Engine, ...] = ("athena", "duckdb", "spark", "trino")
DOUBLE = '"'
ELSEWHERE = (
    "-- A catalog `lake` that is the same as [lake.catalog] has the table already. In another one, as it is now:"
)
FOOTER = 1 << 16
"""Bytes of a file that are read first: the footers of most files."""
PART = re.compile(r"([^={}]+)=\{(date|hour|year|month|day|op|sink)\}")
"""A directory that engines take for a column."""
RANGES = {"hour": ("0,23", 2), "year": ("2010,2100", 4), "month": ("1,12", 2), "day": ("1,31", 2)}
"""For Athena's projection: what a number may be, and its digits."""
TYPES: Mapping[str, Mapping[pa.DataType, str]] = {
    "spark": {
        pa.string(): "STRING",
        pa.int32(): "INT",
        pa.int64(): "BIGINT",
        pa.bool_(): "BOOLEAN",
        pa.binary(): "BINARY",
        pa.timestamp("us", tz="UTC"): "TIMESTAMP",
        pa.decimal128(38, 9): "DECIMAL(38, 9)",
    },
    "trino": {
        pa.string(): "VARCHAR",
        pa.int32(): "INTEGER",
        pa.int64(): "BIGINT",
        pa.bool_(): "BOOLEAN",
        pa.binary(): "VARBINARY",
        pa.timestamp("us", tz="UTC"): "TIMESTAMP",
        pa.decimal128(38, 9): "DECIMAL(38, 9)",
    },
}
"""Athena's are Spark's, as both have them from Hive. DuckDB finds the types itself."""
LISTS = {"spark": "ARRAY<{}>", "trino": "ARRAY({})"}


@dataclass(frozen=True)
class Files:
    """A table of files: below one directory, with the columns that its files have."""

    name: str
    location: str
    """URL of the directory."""
    schema: pa.Schema
    keys: Sequence[tuple[str, str]]
    """Of the directories below it: the column that engines make of one, and what it is of the change (date, hour ...)."""


@dataclass(frozen=True)
class Registered:
    """An Iceberg table, as the catalog has it."""

    namespace: str
    name: str
    metadata: str
    """URL of its newest metadata."""


def lake_tables(objects: Objects, template: str) -> Iterator[Files]:
    """Yield the tables of a lake of files; raise UsageError where its directories are not a table's."""
    parts = template.split("/")
    place = next(number for number, part in enumerate(parts) if "{table}" in part)
    above, below = parts[: place + 1], parts[place + 1 :]
    if odd := [part for part in above if re.search(r"\{(?!table\}|sink\})", part)]:
        raise UsageError(
            f"lake.path has {odd[0]} before {{table}}: a table is in many directories",
            hint="put {table} first in lake.path",
        )
    keys = [(found[1], found[2]) for part in below if (found := PART.fullmatch(part))]
    if len(keys) < len(below):
        raise UsageError(
            f"lake.path has directories without a name, as in {'/'.join(below)}: engines find no columns in them",
            hint='lake.path such as "source_table={table}/changed_date={date}"',
        )
    shape = re.compile("/".join(_pattern(part) for part in above))
    for directory in _directories(objects, len(above)):
        if (found := shape.fullmatch(directory)) is None:
            continue
        names = found.groupdict()
        name = unquote(names["table"]) + (f"_{unquote(names['sink'])}" if names.get("sink") else "")
        if (schema := _schema(objects, directory)) is not None:
            yield Files(name, f"{objects.url.rstrip('/')}/{directory}", schema, keys)


def _pattern(part: str) -> str:
    return re.escape(part).replace(r"\{table\}", "(?P<table>[^/]+)").replace(r"\{sink\}", "(?P<sink>[^/]+)")


def _directories(objects: Objects, depth: int, above: str = "") -> Iterator[str]:
    for directory in objects.directories(above):
        if depth > 1:
            yield from _directories(objects, depth - 1, directory)
        else:
            yield directory


def _schema(objects: Objects, directory: str) -> pa.Schema | None:
    """Return the columns of the newest file of each partition, together; None where there is no file."""
    newest: dict[object, tuple[int, str]] = {}
    for path in objects.paths(directory):
        if path.endswith(".parquet"):
            origin = origin_of(path)
            key, offset = (origin[:2], origin.offset) if origin is not None else (path, 0)
            newest[key] = max(newest.get(key, (-1, "")), (offset, path))
    schemas = [_schema_in(objects, path) for _, path in sorted(newest.values())]
    return united([schema.empty_table() for schema in schemas]).schema if schemas else None


def _schema_in(objects: Objects, path: str) -> pa.Schema:
    """Return the columns of a file: its last bytes have them, and say how many those are."""
    end = objects.tail(path, FOOTER)
    if (size := int.from_bytes(end[-8:-4], "little") + 8) > len(end):
        end = objects.tail(path, size)
    return pq.read_schema(io.BytesIO(end)).remove_metadata()


def registered(catalog: Mapping[str, str], namespace: str) -> Iterator[Registered]:
    """Yield the Iceberg tables of a namespace."""
    from pyiceberg.catalog import load_catalog  # noqa: PLC0415 - an extra

    found = load_catalog("headwater", **catalog)
    for identifier in sorted(found.list_tables(namespace)):
        yield Registered(namespace, identifier[-1], found.load_table(identifier).metadata_location)


def statements(engine: Engine, tables: Iterable[Files]) -> Iterator[str]:
    """Yield what to run, a table at a time."""
    for table in tables:
        yield _OF_FILES[engine](table)


def registrations(engine: Engine, tables: Iterable[Registered]) -> Iterator[str]:
    """Yield what to run for Iceberg tables, a table at a time."""
    for table in tables:
        yield _OF_TABLES[engine](table)


def _quoted(name: str, mark: str) -> str:
    return f"{mark}{name.replace(mark, mark * 2)}{mark}"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _type(engine: str, kind: pa.DataType) -> str:
    """Return what an engine calls a type; '' where it has none."""
    if pa.types.is_list(kind):
        inner = _type(engine, kind.value_type)
        return LISTS[engine].format(inner) if inner else ""
    return TYPES[engine].get(kind, "")


def _columns(table: Files, engine: str, quoted: Callable[[str], str]) -> tuple[list[str], str]:
    """Return the columns as an engine declares them, and a comment on those that it does not have."""
    lines, left_out = [], []
    for field in table.schema:
        if (kind := _type(engine, field.type)) and (name := quoted(field.name)):
            lines.append(f"  {name} {kind}")
        else:
            left_out.append(field.name)
    words = ", ".join(repr(name) for name in left_out)
    return lines, f"-- Without a name or a type here: {words}\n" if left_out else ""


def _duckdb(table: Files) -> str:
    files = _text(f"{table.location}/**/*.parquet")
    return f"{_view(table.name)}read_parquet(\n  {files}, union_by_name = true, hive_partitioning = true);"


def _view(name: str) -> str:
    return f"CREATE OR REPLACE VIEW {_quoted(name, DOUBLE)} AS FROM "


def _spark(table: Files) -> str:
    lines, comment = _columns(table, "spark", lambda name: _quoted(name, "`"))
    lines += [f"  {_quoted(key, '`')} STRING" for key, _ in table.keys]
    keys = ", ".join(_quoted(key, "`") for key, _ in table.keys)
    name = _quoted(table.name, "`")
    return (
        f"{comment}CREATE TABLE {name} (\n"
        + ",\n".join(lines)
        + "\n) USING parquet\n"
        + (f"PARTITIONED BY ({keys})\n" if keys else "")
        + f"LOCATION {_text(_hadoop(table.location))};"
        + (f"\nMSCK REPAIR TABLE {name};  -- again for new directories" if keys else "")
    )


def _trino(table: Files) -> str:
    lines, comment = _columns(table, "trino", lambda name: _quoted(name.lower(), DOUBLE))
    lines += [f"  {_quoted(key.lower(), DOUBLE)} VARCHAR" for key, _ in table.keys]
    name = table.name.lower()
    options = [f"external_location = {_text(table.location)}", "format = 'PARQUET'"]
    if table.keys:
        options.append(f"partitioned_by = ARRAY[{', '.join(_text(key.lower()) for key, _ in table.keys)}]")
    call = f"\nCALL hive.system.sync_partition_metadata('default', {_text(name)}, 'ADD');  -- again for new directories"
    return (
        f"{comment}CREATE TABLE hive.default.{_quoted(name, DOUBLE)} (\n"
        + ",\n".join(lines)
        + f"\n) WITH ({', '.join(options)});"
        + (call if table.keys else "")
    )


def _athena(table: Files) -> str:
    def quoted(name: str) -> str:
        return _quoted(name.lower(), "`") if re.fullmatch(r"[A-Za-z0-9_]+", name) else ""

    lines, comment = _columns(table, "spark", quoted)
    properties = {"projection.enabled": "true"}
    template = table.location
    for key, what in table.keys:
        template += f"/{key}=${{{key}}}"
        if what == "date":
            properties |= {f"projection.{key}.type": "date", f"projection.{key}.format": "yyyy-MM-dd"}
            properties[f"projection.{key}.range"] = "2020-01-01,NOW"
        elif what in RANGES:
            span, digits = RANGES[what]
            properties |= {f"projection.{key}.type": "integer", f"projection.{key}.range": span}
            properties[f"projection.{key}.digits"] = str(digits)
        elif what == "op":
            properties |= {f"projection.{key}.type": "enum", f"projection.{key}.values": "c,u,d,r"}
        else:
            properties[f"projection.{key}.type"] = "injected"
    properties["storage.location.template"] = f"{template}/"
    keys = ", ".join(f"`{key.lower()}` string" for key, _ in table.keys)
    told = ",\n".join(f"  {_text(name)} = {_text(value)}" for name, value in properties.items())
    return (
        f"{comment}CREATE EXTERNAL TABLE `{re.sub(r'[^a-z0-9_]', '_', table.name.lower())}` (\n"
        + ",\n".join(line.lower() for line in lines)
        + "\n)\n"
        + (f"PARTITIONED BY ({keys})\n" if keys else "")
        + f"STORED AS PARQUET\nLOCATION {_text(table.location + '/')}"
        + (f"\nTBLPROPERTIES (\n{told}\n);" if keys else ";")
    )


def _hadoop(url: str) -> str:
    """Return a URL as Hadoop's file systems have it."""
    return re.sub(r"^s3://", "s3a://", url)


_OF_FILES: Mapping[Engine, Callable[[Files], str]] = {
    "athena": _athena,
    "duckdb": _duckdb,
    "spark": _spark,
    "trino": _trino,
}


def _athena_table(table: Registered) -> str:
    return (
        '-- Athena reads the tables of the Glue catalog ([lake.catalog] type = "glue"): nothing is to be made.\n'
        f"SELECT * FROM {_quoted(table.namespace, DOUBLE)}.{_quoted(table.name, DOUBLE)} LIMIT 10;"
    )


def _duckdb_table(table: Registered) -> str:
    load = "INSTALL iceberg; LOAD iceberg;  -- the table as it is now; attach the catalog to follow it"
    return f"{load}\n{_view(table.name)}iceberg_scan({_text(table.metadata)});"


def _spark_table(table: Registered) -> str:
    name = f"{table.namespace}.{_quoted(table.name, '`')}"
    return (
        f"{ELSEWHERE}\nCALL lake.system.register_table(table => {_text(name)}, "
        f"metadata_file => {_text(_hadoop(table.metadata))});"
    )


def _trino_table(table: Registered) -> str:
    location, _, file = table.metadata.partition("/metadata/")
    return (
        f"{ELSEWHERE}\nCALL lake.system.register_table(schema_name => {_text(table.namespace)}, "
        f"table_name => {_text(table.name)}, table_location => {_text(location)}, metadata_file_name => {_text(file)});"
    )


_OF_TABLES: Mapping[Engine, Callable[[Registered], str]] = {
    "athena": _athena_table,
    "duckdb": _duckdb_table,
    "spark": _spark_table,
    "trino": _trino_table,
}
