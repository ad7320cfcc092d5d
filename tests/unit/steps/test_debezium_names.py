"""Debezium's names of records and keys, in all formats, and subjects that have other names already."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import fastavro
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from jsonschema import Draft7Validator
from pydantic import ValidationError
from support.compiled_flows import flow, run
from support.made_events import event, record
from support.paths import BEFORE
from support.schema_registry import Registry as Served
from support.schema_registry import serve

from pipeline.flows.compile import CompileContext
from pipeline.flows.graph import steps
from pipeline.services.registry import SchemaRegistry
from pipeline.settings.flows import FlowSettings
from pipeline.settings.formats import EnvelopeSettings, FormatSettings
from pipeline.settings.kafka import RegistrySettings
from pipeline.settings.root import Settings
from pipeline.steps.envelope import Encoder
from pipeline.steps.event import Event
from pipeline.steps.flow import Message
from pipeline.steps.formats import protobuf
from pipeline.steps.formats.connect import compile_schemas
from pipeline.steps.formats.registered import CODECS, TYPES, compile_format
from pipeline.steps.formats.shape import ConflictError

TOPIC = "p.sink.orders-a"
SUBJECT = f"{TOPIC}-value"
CONTEXT = SerializationContext(TOPIC, MessageField.VALUE)
LEGAL = "p.sink.orders_u002d_a"
SOURCE = "io.debezium.connector.headwater.Source"
SCHEMAS_BEFORE = BEFORE / "schemas"
ENDINGS = {"avro": "avsc", "protobuf": "proto", "json-schema": "json"}
KINDS = ["avro", "protobuf", "json-schema"]
ID = {"id": {"S": "1"}}
OLD: dict[str, Any] = {**ID, "gone": {"S": "x"}, "parts": {"L": [{"N": "1"}]}}
NEW: dict[str, Any] = {**ID, "total": {"N": "12.5"}, "seal": {"B": "AP8="}, "parts": {"M": {"a": {"N": "1.0"}}}}


@pytest.fixture
def served() -> Iterator[Served]:
    with serve() as registry:
        yield registry


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def registry_of(served: Served, clients: ExitStack) -> SchemaRegistry:
    registry = SchemaRegistry(RegistrySettings(url=served.url, properties={"max.retries": 0}))
    clients.callback(registry._client.close)
    return registry


def worker(served: Served, clients: ExitStack, kind: str, **settings: Any) -> Encoder:
    """Return the last step of a worker of its own."""
    form = FormatSettings.model_validate({"kind": kind, **settings})
    return compile_format(EnvelopeSettings(kind="debezium"), form, TOPIC, registry_of(served, clients))


def earlier(served: Served, kind: str) -> Event:
    """Have the registry know what the version before has registered; return what that has written of NEW and OLD."""
    text, message = (SCHEMAS_BEFORE / f"debezium.{ENDINGS[kind]}{end}" for end in ("", ".message"))
    schema = {"schema": text.read_text(), "schemaType": TYPES[kind], "subject": SUBJECT, "version": 1, "id": 1}
    served.subjects[SUBJECT] = [schema]
    one = event(record(NEW, OLD))
    one.output = message.read_bytes()
    return one


def done(step: Encoder, *values: bytes) -> list[Event]:
    events = [event(value) for value in values]
    step(events)
    for one in events:
        assert one.error is None, one.error
    return events


def schemas(served: Served, subject: str = SUBJECT) -> list[str]:
    return [one["schema"] for one in served.subjects.get(subject, [])]


def names(served: Served, kind: str) -> dict[str, str]:
    """Return what the records of the newest schema are called."""
    shape = CODECS[kind].parse(schemas(served)[-1])
    return {"": shape.name} | {name: one.shape.name for name, one in shape.fields.items() if one.shape is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_named_as_debezium_names_them(kind: str, served: Served, clients: ExitStack) -> None:
    done(worker(served, clients, kind), record(NEW, OLD))
    assert names(served, kind) == {
        "": f"{TOPIC}.Envelope",
        "before": f"{TOPIC}.Value",
        "after": f"{TOPIC}.Value",
        "source": SOURCE,
        "transaction": "event.block",
    }


def test_avro_has_full_names_of_legal_characters(served: Served, clients: ExitStack) -> None:
    (one,) = done(worker(served, clients, "avro"), record(NEW, OLD))
    (text,) = schemas(served)
    schema: Any = fastavro.parse_schema(json.loads(text))
    fields = {field["name"]: field["type"] for field in schema["fields"]}
    assert schema["name"] == f"{LEGAL}.Envelope"
    assert (fields["before"][1]["name"], fields["after"][1]) == (f"{LEGAL}.Value", f"{LEGAL}.Value")
    assert (fields["source"][1]["name"], fields["transaction"][1]["name"]) == (SOURCE, "event.block")
    found: Any = fastavro.schemaless_reader(io.BytesIO((one.output or b"")[5:]), schema, None)
    assert found["after"]["total"] == Decimal("12.5")


def test_avro_is_read_as_confluents_registry_keeps_it(served: Served, clients: ExitStack) -> None:
    """That puts what stands before the last dot of a name into the namespace, and leaves it out of what is within."""
    done(worker(served, clients, "avro"), record(NEW, OLD))
    (text,) = schemas(served)
    kept = json.loads(text)
    kept["name"], kept["namespace"] = "Envelope", LEGAL
    before, after, source, transaction = (next(f for f in kept["fields"] if f["name"] == n)["type"] for n in RECORDS)
    before[1]["name"], after[1] = "Value", "Value"
    source[1]["name"], source[1]["namespace"] = "Source", SOURCE.rpartition(".")[0]
    transaction[1]["name"], transaction[1]["namespace"] = "block", "event"
    again = CODECS["avro"].parse(json.dumps(kept))
    assert CODECS["avro"].schema(again) == text
    served.subjects[SUBJECT][-1]["schema"] = json.dumps(kept)
    done(worker(served, clients, "avro"), record({**NEW, "more": {"S": "x"}}, OLD))
    assert names(served, "avro")[""] == f"{TOPIC}.Envelope"


RECORDS = ("before", "after", "source", "transaction")


def test_protobuf_has_messages_of_one_package(served: Served, clients: ExitStack) -> None:
    (one,) = done(worker(served, clients, "protobuf"), record(NEW, OLD))
    (text,) = schemas(served)
    assert f"\npackage {LEGAL};\n" in text
    messages = [line for line in text.splitlines() if line.startswith("message ")]
    assert messages == ["message Envelope {", "message Value {", "message Source {", "message block {"]
    made = protobuf.message_class(protobuf.parse(text))
    assert made.DESCRIPTOR.full_name == f"{LEGAL}.Envelope"
    assert made.DESCRIPTOR.fields_by_name["before"].message_type.full_name == f"{LEGAL}.Value"
    assert made.FromString((one.output or b"")[6:]).after.total == "12.5"


def test_json_schema_says_what_readers_of_kafka_connect_need(served: Served, clients: ExitStack) -> None:
    (one,) = done(worker(served, clients, "json-schema"), record(NEW, OLD))
    schema = json.loads(schemas(served)[-1])
    Draft7Validator(schema).validate(json.loads((one.output or b"")[5:]))
    item = schema["properties"]["after"]["oneOf"][1]
    total = item["properties"]["total"]["oneOf"][1]
    assert (total["title"], total["connect.parameters"]["scale"]) == ("org.apache.kafka.connect.data.Decimal", "9")
    assert [field["connect.index"] for field in item["properties"].values()] == list(range(len(item["properties"])))
    assert b'"total":12.500000000' in (one.output or b""), "the scale is that of the schema"
    assert json.loads((one.output or b"")[5:])["after"]["parts"] == '{"a":1.0}'


@pytest.mark.parametrize("kind", KINDS)
def test_a_subject_that_is_there_keeps_its_names(
    kind: str, served: Served, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    former = earlier(served, kind)
    caplog.set_level(logging.INFO)
    step = worker(served, clients, kind)
    (one,) = done(step, record(NEW, OLD))
    assert (len(schemas(served)), one.output) == (1, former.output), "as if nothing had been"
    done(step, record({**NEW, "more": {"N": "1"}}, OLD))
    assert names(served, kind)["after"] == "Item"
    told = [one.message for one in caplog.records if one.name.startswith("pipeline.steps")]
    assert told == [f"{SUBJECT}: its records keep their names, which Debezium's readers refuse (former_names = keep)"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_subject_is_migrated_where_it_is_asked_for(
    kind: str, served: Served, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    earlier(served, kind)
    caplog.set_level(logging.INFO)
    done(worker(served, clients, kind, former_names="migrate"), record(NEW, OLD))
    assert names(served, kind)[""] == f"{TOPIC}.Envelope"
    assert len(schemas(served)) == 2
    (told,) = [one.message for one in caplog.records if one.name.startswith("pipeline.steps")]
    assert told == f"{SUBJECT}: its records have the names now that Debezium gives them (former_names = migrate)"
    caplog.clear()
    done(worker(served, clients, kind), record({**NEW, "more": {"N": "1"}}, OLD))
    assert names(served, kind)[""] == f"{TOPIC}.Envelope", "also with keep, once it is migrated"
    assert not [one for one in caplog.records if one.name.startswith("pipeline.steps")]


def test_a_migrated_subject_has_aliases_in_avro_so_that_new_readers_read_old_records(
    served: Served, clients: ExitStack
) -> None:
    former = earlier(served, "avro")
    step = worker(served, clients, "avro", former_names="migrate")
    done(step, record(NEW, OLD))
    done(step, record({**NEW, "more": {"N": "1"}}, OLD))
    done(worker(served, clients, "avro"), record({**NEW, "again": {"N": "1"}}, OLD))
    for text in schemas(served)[1:]:
        schema = json.loads(text)
        fields = {field["name"]: field["type"] for field in schema["fields"]}
        assert schema["aliases"] == [".orders_u002d_a", "orders_u002d_a"]
        aliases = [fields[name][1]["aliases"] for name in ("before", "source", "transaction")]
        assert aliases == [[".Item", "Item"], [".Source", "Source"], [".Transaction", "Transaction"]]
        client = SchemaRegistryClient({"url": served.url})
        clients.callback(client.close)
        found: Any = AvroDeserializer(client, text)(former.output or b"", CONTEXT)
        assert found["after"]["total"] == Decimal("12.5")


@pytest.mark.parametrize("kind", KINDS)
def test_a_migration_that_the_registry_refuses_is_reported_and_the_names_stay(
    kind: str, served: Served, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    earlier(served, kind)
    served.refuses = lambda schema: "Envelope" in schema
    step = worker(served, clients, kind, former_names="migrate")
    done(step, record(NEW, OLD))
    done(step, record({**NEW, "more": {"N": "1"}}, OLD))
    assert names(served, kind)["after"] == "Item"
    (told,) = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert "keep their names, the registry refuses Debezium's" in told
    assert "aliases" not in schemas(served)[-1]
    assert '"wide"' not in schemas(served)[-1]


def test_lists_and_maps_of_a_migrated_json_schema_stay_anything(served: Served, clients: ExitStack) -> None:
    earlier(served, "json-schema")
    (one,) = done(worker(served, clients, "json-schema", former_names="migrate"), record(NEW, OLD))
    assert json.loads((one.output or b"")[5:])["after"]["parts"] == {"a": 1.0}


# -- keys -------------------------------------------------------------------------------------------------------------

KEYS = ("customer", "line")
ITEM = {"customer": {"S": "c-1"}, "line": {"N": "7"}, "note": {"S": "x"}}


def messages(served: Served, clients: ExitStack, *values: bytes, **settings: Any) -> list[Message]:
    """Return what a flow makes of records."""
    means = CompileContext(registry=registry_of(served, clients), topic=lambda sink: f"p.sink.{sink}")
    results = run(
        flow(means=means, to="orders-a", envelope={"kind": "debezium", "tombstone": True}, **settings), *values
    )
    assert [one.error for one in results] == [None] * len(values)
    return [message for result in results for message in result.messages]


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_a_struct_of_the_key_attributes_where_it_is_asked_for(
    kind: str, served: Served, clients: ExitStack
) -> None:
    values = record(ITEM, keys=KEYS), record(None, ITEM, keys=KEYS)
    insert, delete, tombstone = messages(served, clients, *values, format=kind, key_format=kind)
    assert insert.key == delete.key == tombstone.key
    assert tombstone.value is None
    (text,) = schemas(served, f"{TOPIC}-key")
    shape = CODECS[kind].parse(text)
    assert (shape.name, list(shape.fields), shape.required) == (f"{TOPIC}.Key", ["customer", "line"], True)
    key = insert.key or b""
    if kind == "avro":
        client = SchemaRegistryClient({"url": served.url})
        clients.callback(client.close)
        found: Any = AvroDeserializer(client)(key, SerializationContext(TOPIC, MessageField.KEY))
        assert found == {"customer": "c-1", "line": Decimal(7)}
    elif kind == "protobuf":
        read = protobuf.message_class(shape).FromString(key[6:])
        assert (read.customer, read.line) == ("c-1", "7")
        assert "  string customer = 1;" in text
    else:
        Draft7Validator(json.loads(text)).validate(json.loads(key[5:]))
        assert json.loads(key[5:]) == {"customer": "c-1", "line": 7}
        assert json.loads(text)["required"] == ["customer", "line"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_of_keys_stays_what_it_is(kind: str, served: Served, clients: ExitStack) -> None:
    """Else an item would get another key."""
    (one,) = messages(served, clients, record(ITEM, keys=KEYS), format=kind, key_format=kind)
    (again,) = messages(served, clients, record(ITEM, keys=("line", "customer")), format=kind, key_format=kind)
    assert again.key == one.key
    means = CompileContext(registry=registry_of(served, clients), topic=lambda sink: f"p.sink.{sink}")
    other = flow(means=means, to="orders-a", envelope="debezium", format=kind, key_format=kind)
    (result,) = run(other, record(ITEM, keys=("customer",)))
    assert isinstance(result.error, ConflictError)
    assert "is customer (string), line (decimal), and not customer (string)" in str(result.error)
    assert len(schemas(served, f"{TOPIC}-key")) == 1


def test_the_key_of_a_masked_attribute_is_masked(served: Served, clients: ExitStack, tmp_path: Any) -> None:
    (tmp_path / "key").write_text(base64.b64encode(bytes(32)).decode())
    masked = {"mask": [{"path": "customer", "how": "hash"}], "mask_key": f"file:{tmp_path}/key"}
    (one,) = messages(served, clients, record(ITEM, keys=KEYS), key_format={"kind": "json", "schemas": True}, **masked)
    assert json.loads(one.key or b"")["payload"]["customer"] not in {"", "c-1"}
    assert b"c-1" not in (one.value or b"")


# -- JSON with its schema ---------------------------------------------------------------------------------------------


def written(value: bytes, envelope: dict[str, Any] | str = "debezium", **settings: Any) -> Any:
    whole = {"kind": envelope} if isinstance(envelope, str) else envelope
    step = compile_schemas(
        EnvelopeSettings.model_validate(whole), FormatSettings(kind="json", schemas=True, **settings), TOPIC
    )
    (one,) = done(step, value)
    return json.loads(one.output or b"")


def test_json_carries_its_schema() -> None:
    found = written(record(NEW, OLD))
    schema, payload = found["schema"], found["payload"]
    fields = {field["field"]: field for field in schema["fields"]}
    assert (schema["name"], schema["version"]) == (f"{TOPIC}.Envelope", 2)
    assert [fields[name]["name"] for name in RECORDS] == [f"{TOPIC}.Value", f"{TOPIC}.Value", SOURCE, "event.block"]
    kinds = {field["field"]: (field["type"], field.get("name")) for field in fields["after"]["fields"]}
    assert kinds == {
        "id": ("string", None),
        "total": ("bytes", "org.apache.kafka.connect.data.Decimal"),
        "seal": ("bytes", None),
        "parts": ("string", None),
        "gone": ("string", None),
    }, "what is gone is a member, so that a reader sees that it is null"
    assert {field["field"] for field in fields["before"]["fields"]} == set(kinds)
    total = int.from_bytes(base64.b64decode(payload["after"]["total"]), "big")
    assert total == 12_500_000_000
    assert payload["after"]["parts"] == '{"a":1.0}'
    assert (payload["op"], payload["transaction"], payload["source"]["table"]) == ("u", None, "orders")


def test_json_with_its_schema_as_plain_json() -> None:
    found = written(record(NEW, OLD), {"kind": "plain", "numbers": "string"})
    assert found["schema"]["name"] == f"{TOPIC}.Value"
    assert {"type": "string", "optional": True, "field": "total"} in found["schema"]["fields"]
    assert {"type": "string", "optional": True, "field": "gone"} in found["schema"]["fields"]
    assert found["payload"] == {"id": "1", "total": "12.5", "seal": "AP8=", "parts": '{"a":1.0}'}


def test_a_number_that_does_not_fit_the_decimal_is_rejected_or_text() -> None:
    value = record({**ID, "n": {"N": "1E-130"}})
    (one,) = [event(value)]
    compile_schemas(EnvelopeSettings(kind="debezium"), FormatSettings(kind="json", schemas=True), TOPIC)([one])
    assert "cannot hold this number" in str(one.error)
    assert written(value, on_conflict="widen")["payload"]["after"]["n"] == "1E-130"


def test_settings_that_do_not_go_together_are_refused() -> None:
    for form in ({"kind": "avro", "schemas": True}, {"kind": "json", "former_names": "keep"}):
        with pytest.raises(ValidationError):
            FormatSettings.model_validate(form)
    with pytest.raises(ValidationError, match="key_format avro: needs the envelope plain or debezium"):
        FlowSettings.model_validate({"name": "f", "to": "s", "key_format": "avro"})
    with pytest.raises(ValidationError, match="format json with schemas: needs the envelope"):
        FlowSettings.model_validate({"name": "f", "to": "s", "format": {"schemas": True}})
    with pytest.raises(ValidationError, match=r"flows\.0\.key_format: avro needs schema_registry\.url"):
        Settings.model_validate({"flows": [{"name": "f", "to": "s", "envelope": "debezium", "key_format": "avro"}]})


def test_the_graph_of_flows_tells_the_formats() -> None:
    whole = {"name": "f", "to": "s", "envelope": "debezium", "format": {"schemas": True}, "key_format": "avro"}
    assert steps(FlowSettings.model_validate(whole)) == ["debezium with schemas, keys avro"]
