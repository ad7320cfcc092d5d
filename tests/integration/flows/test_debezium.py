"""Our topics as Kafka Connect reads them: Debezium's own transformation unwraps them, into files and into PostgreSQL."""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Producer
from support import kafka_connect as connecting
from support import postgres
from support.fleet import Fleet
from support.kafka_connect import Java, Properties
from support.made_events import event, record
from support.schema_registry import Registry, serve
from support.waiting import until

from headwater.lab.recorder import Recorder, lag
from headwater.lab.stack import Endpoints
from models.change import decode, item_key
from pipeline.steps.formats import avro
from pipeline.steps.formats.shape import Shape, debezium_members, debezium_names, grow, renamed

pytestmark = pytest.mark.kafka
FORMATS = ["avro", "protobuf", "json-schema", "json"]
KEYS = ("order_id", "line")
EXACT = "12345678901234567890.123456789"
Row = dict[str, Any]


def item(order: str, line: int, **attributes: Any) -> Row:
    return {"order_id": {"S": order}, "line": {"N": str(line)}, **attributes}


def changes() -> list[tuple[Row | None, Row | None]]:
    """Return what happens to a table: each item after a change, and before it."""
    first = item(
        "a",
        1,
        total={"N": "12.5"},
        gift={"BOOL": True},
        note={"S": 'naïve "客户" \\ \n'},
        email={"S": "a@example.com"},
        seal={"B": "AP8="},
        tags={"SS": ["b", "a"]},
        parts={"L": [{"S": "x"}, {"N": "1.50"}]},
    )
    second = {name: value for name, value in first.items() if name not in {"gift", "note"}}
    second |= {"total": {"N": EXACT}, "email": {"S": "b@example.com"}}
    other, third = item("a", 2, total={"N": "0"}), item("b", 1, gift={"BOOL": False}, nothing={"NULL": True})
    late = {**third, "late": {"N": "-0.000000001"}}
    again = item("b", 1, note={"S": "again"})
    return [
        (first, None),
        (other, None),
        (second, first),
        (third, None),
        (None, other),
        (late, third),
        (None, late),
        (again, None),
    ]


def plain(row: Row) -> Row:
    """Return an item as rows of a database have it: masked, numbers exact, lists as JSON text."""
    found: Row = {}
    for name, value in row.items():
        ((kind, content),) = value.items()
        if kind == "N":
            found[name] = Decimal(content)
        elif kind == "SS":
            found[name] = sorted(content)
        elif kind == "B":
            found[name] = "\\x" + base64.b64decode(content).hex()
        elif kind == "L":
            found[name] = '["x",1.50]'
        elif kind != "NULL":
            found[name] = content
    return found | ({"email": "***"} if "email" in found else {})


def table() -> dict[tuple[str, Decimal], Row]:
    """Return the table after all changes."""
    found: dict[tuple[str, Decimal], Row] = {}
    for after, before in changes():
        row = plain(after or before or {})
        key = row["order_id"], row["line"]
        if after is None:
            del found[key]
        else:
            found[key] = row
    return found


def converters(kind: str, registry: str) -> Properties:
    """Return the converters that read a format."""
    if kind == "json":
        one = {"": "org.apache.kafka.connect.json.JsonConverter", ".schemas.enable": "true"}
    elif kind == "avro":
        one = {
            "": "io.apicurio.registry.utils.converter.AvroConverter",
            ".apicurio.registry.url": f"{registry}/apis/registry/v2",
            ".apicurio.registry.id-handler": "io.apicurio.registry.serde.Legacy4ByteIdHandler",
            ".apicurio.registry.use-id": "contentId",
            ".apicurio.registry.headers.enabled": "false",
        }
    else:
        reader = {"protobuf": "RegistryConverter$Protobuf", "json-schema": "RegistryConverter$JsonSchema"}[kind]
        one = {"": reader, ".schema.registry.url": registry}
    return {f"{part}.converter{name}": value for part in ("key", "value") for name, value in one.items()}


def unwrap(mode: str) -> Properties:
    """Return Debezium's transformation; what is to become of deletions."""
    return {
        "transforms": "unwrap",
        "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
        "transforms.unwrap.delete.tombstone.handling.mode": mode,
    }


def into_file(file: Path) -> Properties:
    fields = {
        "transforms": "unwrap,texts",
        "transforms.unwrap.add.fields": "op,source.table",
        # Bytes have no text in Java.
        "transforms.texts.type": "org.apache.kafka.connect.transforms.ReplaceField$Value",
        "transforms.texts.exclude": "seal",
    }
    sink = {"connector.class": "org.apache.kafka.connect.file.FileStreamSinkConnector", "file": str(file)}
    return {**sink, **unwrap("rewrite"), **fields}


def into_database(address: str, name: str) -> Properties:
    return {
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "connection.url": address,
        "connection.username": "headwater",
        "connection.password": "",
        "insert.mode": "upsert",
        "delete.enabled": "true",
        "primary.key.mode": "record_key",
        "schema.evolution": "basic",
        "quote.identifiers": "true",
        "collection.name.format": name,
    }


@dataclass
class Sunk:
    """What a worker of Kafka Connect has made of our topics."""

    files: dict[str, list[Row]] = field(default_factory=dict)
    """By format, the unwrapped values."""
    tables: dict[str, list[Row]] = field(default_factory=dict)
    """By table, its rows: `FORMAT-unwrapped`, and `FORMAT-whole` by the sink's own knowledge of envelopes."""


def flows(key: Path) -> list[dict[str, Any]]:
    common = {
        "from": ["orders"],
        "envelope": {"kind": "debezium", "tombstone": True},
        "mask": [{"path": "email", "how": "redact"}],
        "mask_key": f"file:{key}",
    }
    found = []
    for kind in FORMATS:
        form = {"kind": kind, **({"schemas": True} if kind == "json" else {})}
        found.append({**common, "name": kind, "to": f"orders-{kind}", "format": form, "key_format": form})
    hashed = [*common["mask"], {"path": "order_id", "how": "hash"}]
    found.append({**found[0], "name": "hashed", "to": "orders-hashed", "mask": hashed})
    return found


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Java:
    if (why := connecting.missing() or postgres.missing()) is not None:
        (pytest.fail if os.environ.get("HEADWATER_REQUIRE_KAFKA") == "1" else pytest.skip)(why)
    return Java.compiled(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def sunk(java: Java, kafka_stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sunk]:
    """Write the changes, have a worker carry them, and Kafka Connect read them; once for all tests."""
    directory = tmp_path_factory.mktemp("debezium")
    with ExitStack() as stack:
        registry = stack.enter_context(serve())
        address = stack.enter_context(postgres.running(connecting.jars()))
        fleet = carried(kafka_stack, directory, registry)
        ends = {name: last(one) for name, one in recorded(fleet, stack).items()}
        connectors: dict[str, Properties] = {}
        for kind in (*FORMATS, "hashed"):
            read = {"topics": fleet.topics.sink(f"orders-{kind}"), **converters(FORMAT.get(kind, kind), registry.url)}
            connectors[f"{kind}-file"] = {**read, **into_file(directory / f"{kind}.txt")}
            connectors[f"{kind}-unwrapped"] = {
                **read,
                **into_database(address, f"{kind}-unwrapped"),
                **unwrap("tombstone"),
            }
            connectors[f"{kind}-whole"] = {**read, **into_database(address, f"{kind}-whole")}
        servers = fleet.endpoints.bootstrap_servers
        with connecting.running(java, directory, servers, connectors) as worker:

            def is_done(name: str) -> bool:
                worker.look_at(name)
                topic = connectors[name]["topics"]
                return lag(fleet.conf, f"connect-{name}", {topic: ends[topic]}) == 0

            for name in connectors:
                until(partial(is_done, name), f"all records by {name}", seconds=200)
        found = Sunk()
        tables = [name for name in connectors if not name.endswith("-file")]
        for name, line in zip(tables, java.run("Rows", address, *tables), strict=True):
            found.tables[name] = [
                without_nulls(row) for row in json.loads(line, parse_float=Decimal, parse_int=Decimal)
            ]
        for kind in (*FORMATS, "hashed"):
            lines = (directory / f"{kind}.txt").read_text(encoding="utf-8").split("Struct{")[1:]
            found.files[kind] = [fields_of(line) for line in lines]
        yield found


FORMAT = {"hashed": "avro"}


def carried(stack: Endpoints, directory: Path, registry: Registry) -> Fleet:
    """Return a deployment that has carried all changes to the sinks."""
    (directory / "key").write_text(base64.b64encode(bytes(32)).decode())
    wanted = flows(directory / "key")
    own = {
        "HEADWATER_AGENTS": '["transform"]',
        "HEADWATER_FLOWS": json.dumps(wanted),
        "HEADWATER_SCHEMA_REGISTRY__URL": registry.url,
    }
    fleet = Fleet(stack, directory, own, partitions=2, prefix=f"t{uuid.uuid4().hex[:8]}")
    producer = Producer({**fleet.conf, "partitioner": "murmur2_random"})
    for number, (after, before) in enumerate(changes(), 1):
        value = record(after, before, KEYS, number)
        producer.produce(fleet.topics.raw, value, item_key(decode(value).body.keys))
    assert producer.flush(20) == 0
    return fleet


def recorded(fleet: Fleet, stack: ExitStack) -> dict[str, Recorder]:
    """Return what the sink topics hold when the worker has carried everything."""
    messages = sum(2 if after is None else 1 for after, _ in changes())
    with fleet.running():
        names = [fleet.topics.sink(f"orders-{kind}") for kind in (*FORMATS, "hashed")]
        found = {name: stack.enter_context(Recorder(fleet.conf, name)) for name in names}
        until(lambda: all(len(one) == messages for one in found.values()), "all changes in the sinks")
    return found


def last(recorder: Recorder) -> dict[int, int]:
    """Return by partition how far a group comes at least: the transformation drops tombstones, and sinks do not count them."""
    found: dict[int, int] = {}
    for partition, records in recorder.records.items():
        found[partition] = max(cast("int", one.offset()) + 1 for one in records if one.value() is not None)
    return found


def without_nulls(row: Mapping[str, Any]) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def fields_of(text: str) -> Row:
    """Return the fields of a struct as Java prints it."""
    return dict(part.partition("=")[::2] for part in text.strip().removesuffix("}").split(",") if "=" in part)


def numbers(row: Row) -> Row:
    """Return a row with its numbers as numbers: Protobuf has them as text."""
    return {name: Decimal(value) if name in {"line", "total", "late"} else value for name, value in row.items()}


@pytest.mark.parametrize("kind", FORMATS)
def test_debezium_unwraps_our_topics_into_a_file(kind: str, sunk: Sunk) -> None:
    wanted: list[Row] = []
    for after, before in changes():
        row = plain(after or before or {})
        op = "d" if after is None else "c" if before is None else "u"
        said: Row = {name: row[name] for name in ("order_id", "line", "total", "email") if name in row}
        wanted.append(
            {**said, "__deleted": "true" if after is None else "false", "__op": op, "__source_table": "orders"}
        )
    rows = [numbers(row) for row in sunk.files[kind]]
    found = [{name: value for name, value in row.items() if name in WATCHED} for row in rows]
    assert sorted(map(repr, map(sorted_items, found))) == sorted(map(repr, map(sorted_items, wanted)))


WATCHED = {"order_id", "line", "total", "email", "__deleted", "__op", "__source_table"}


def sorted_items(row: Row) -> list[tuple[str, Any]]:
    return sorted((name, value.normalize() if isinstance(value, Decimal) else value) for name, value in row.items())


@pytest.mark.parametrize("how", ["unwrapped", "whole"])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_rows_of_a_database_equal_the_table(kind: str, how: str, sunk: Sunk) -> None:
    rows = [numbers(row) for row in sunk.tables[f"{kind}-{how}"]]
    assert {(row["order_id"], row["line"]): row for row in rows} == table()
    assert len(rows) == len(table())


@pytest.mark.parametrize("how", ["unwrapped", "whole"])
def test_masked_keys_are_masked_in_the_database_and_tell_items_apart(how: str, sunk: Sunk) -> None:
    rows = sunk.tables[f"hashed-{how}"]
    assert len(rows) == len(table())
    assert not {row["order_id"] for row in rows} & {"a", "b"}
    assert sorted(row["line"] for row in rows) == sorted(line for _, line in table())


def test_avro_reads_with_the_schema_of_a_migrated_subject_what_the_former_one_wrote(java: Java, tmp_path: Path) -> None:
    """So a registry with this version of Avro takes it under BACKWARD; without the aliases it would not."""
    shape = Shape("orders")
    value = event(record(*changes()[2], keys=KEYS))
    grow(shape, debezium_members(value, documents=False), widen=False)
    former, bare, new = tmp_path / "former", tmp_path / "bare", tmp_path / "new"
    former.write_text(avro.schema(shape))
    topic = "p.sink.orders"
    renamed(shape, f"{topic}.Envelope", debezium_names(topic))
    bare.write_text(avro.schema(shape))
    renamed(shape, f"{topic}.Envelope", debezium_names(topic), alias="orders")
    new.write_text(avro.schema(shape))
    assert java.run("Compatible", bare, former)[0] == "INCOMPATIBLE"
    said, kept = java.run("Compatible", new, former)
    assert said == "COMPATIBLE"
    assert avro.parse(kept).alias == "orders"
