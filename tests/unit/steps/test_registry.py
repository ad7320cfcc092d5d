"""Schemas in a registry that other workers write to as well, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from support.made_events import event, record
from support.paths import SCHEMAS
from support.schema_registry import Registry as Served
from support.schema_registry import goes_with, serve

from pipeline.errors import TransientError
from pipeline.services.registry import SchemaRegistry
from pipeline.settings.formats import EnvelopeSettings, FormatSettings
from pipeline.settings.kafka import RegistrySettings
from pipeline.steps.envelope import Encoder
from pipeline.steps.event import Event
from pipeline.steps.formats import json_schema, protobuf, registered, shape
from pipeline.steps.formats.registered import CODECS, IncompatibleError, compile_format
from pipeline.steps.formats.shape import ConflictError, Shape

TOPIC = "p.sink.orders"
SUBJECT = f"{TOPIC}-value"
CONTEXT = SerializationContext(TOPIC, MessageField.VALUE)
KINDS = ["avro", "protobuf", "json-schema"]
ID = {"id": {"S": "1"}}
OPEN: dict[Served, ExitStack] = {}
"""What closes the clients of a registry."""


@pytest.fixture
def served() -> Iterator[Served]:
    with serve() as registry, ExitStack() as clients:
        OPEN[registry] = clients
        yield registry
        del OPEN[registry]


def worker(served: Served, kind: str, envelope: Any = "plain", topic: str = TOPIC, **settings: Any) -> Encoder:
    """Return the last step of a worker of its own, with a client of its own."""
    registry = SchemaRegistry(RegistrySettings(url=served.url, properties={"max.retries": 0}))
    OPEN[served].callback(registry._client.close)
    return compile_format(
        EnvelopeSettings.model_validate(envelope if isinstance(envelope, dict) else {"kind": envelope}),
        FormatSettings.model_validate({"kind": kind, **settings}),
        topic,
        registry,
    )


def encode(step: Encoder, *items: dict[str, Any]) -> list[Event]:
    events = [event(record({**ID, **item})) for item in items]
    step(events)
    return events


def decoded(served: Served, kind: str, one: Event) -> Any:
    assert one.error is None, one.error
    client = SchemaRegistryClient({"url": served.url})
    OPEN[served].callback(client.close)
    if kind == "avro":
        return AvroDeserializer(client)(one.output or b"", CONTEXT)
    if kind == "json-schema":
        return JSONDeserializer(None, schema_registry_client=client)(one.output or b"", CONTEXT)
    made = protobuf.message_class(protobuf.parse(client.get_schema(schema_id(one)).schema_str or ""))
    read: Any = ProtobufDeserializer(made, {"use.deprecated.format": False})
    message = read(one.output, CONTEXT)
    return {field.name: getattr(message, field.name) for field, _ in message.ListFields()}


def schema_id(one: Event) -> int:
    return int.from_bytes((one.output or b"")[1:5], "big")


def newest(served: Served, kind: str) -> Shape:
    found: Shape = CODECS[kind].parse(served.subjects[SUBJECT][-1]["schema"])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_workers_take_over_what_others_have_registered_since(kind: str, served: Served) -> None:
    one, other = worker(served, kind), worker(served, kind)
    encode(one, {})
    encode(other, {})
    encode(one, {"a": {"N": "1"}})
    (second,) = encode(other, {"b": {"S": "x"}})
    assert list(newest(served, kind).fields) == ["id", "a", "b"]
    assert decoded(served, kind, second) == {"id": "1", "b": "x"} | ({"a": None} if kind == "avro" else {})
    assert len(served.subjects[SUBJECT]) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_that_comes_in_between_keeps_its_members(kind: str, served: Served) -> None:
    """Two workers read the same newest schema, and then both register: nothing is written with what forgets the first."""
    one, other = worker(served, kind), worker(served, kind)
    encode(one, {})
    encode(other, {})
    served.before_register = lambda: encode(one, {"a": {"S": "of one"}})
    (second,) = encode(other, {"b": {"S": "of the other"}})
    assert {name: field.number for name, field in newest(served, kind).fields.items()} == {"id": 1, "a": 2, "b": 3}
    assert schema_id(second) == served.subjects[SUBJECT][-1]["id"]
    assert decoded(served, kind, second)["b"] == "of the other"


@pytest.mark.parametrize("kind", KINDS)
def test_a_conflict_with_what_another_worker_has_registered_is_rejected_not_written_as_null(
    kind: str, served: Served
) -> None:
    one, other = worker(served, kind), worker(served, kind)
    encode(one, {})
    encode(other, {})
    encode(one, {"a": {"BOOL": True}})
    bad, good = encode(other, {"a": {"S": "x"}}, {"b": {"S": "y"}})
    assert isinstance(bad.error, ConflictError)
    assert bad.output is None
    assert decoded(served, kind, good)["b"] == "y"
    wide = worker(served, kind, on_conflict="widen")
    (late,) = encode(wide, {"a": {"S": "x"}})
    assert "x" in decoded(served, kind, late).values()


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_that_is_refused_rejects_the_changes_that_need_it_and_no_others(kind: str, served: Served) -> None:
    served.refuses = lambda schema: "forbidden" in schema
    step = worker(served, kind)
    first, bad, last = encode(step, {"a": {"S": "1"}}, {"forbidden": {"S": "2"}}, {"b": {"S": "3"}})
    assert isinstance(bad.error, IncompatibleError)
    assert decoded(served, kind, first)["a"] == "1"
    assert decoded(served, kind, last)["b"] == "3"
    again, after = encode(step, {"forbidden": {"S": "2"}}, {"c": {"S": "4"}})
    assert isinstance(again.error, IncompatibleError)
    assert decoded(served, kind, after)["c"] == "4"


@pytest.mark.parametrize("kind", KINDS)
def test_a_registry_that_is_away_is_no_reason_to_reject(kind: str, served: Served) -> None:
    step = worker(served, kind)
    served.away = True
    events = [event(record(ID))]
    with pytest.raises(TransientError):
        step(events)
    assert events[0].error is None
    served.away = False
    step(events)
    assert decoded(served, kind, events[0]) == {"id": "1"}
    served.away = True
    (known,) = encode(step, {})
    assert known.error is None, "a schema that is known needs no registry"


@pytest.mark.parametrize("kind", KINDS)
def test_a_restarted_worker_continues_with_the_same_schema(kind: str, served: Served) -> None:
    items = {"größe": {"N": "1"}, "m": {"M": {}}, "f": {"BOOL": True}}
    (before,) = encode(worker(served, kind, "debezium", on_conflict="widen"), items)
    (after,) = encode(worker(served, kind, "debezium", on_conflict="widen"), items)
    assert after.output == before.output
    assert len(served.subjects[SUBJECT]) == 1


def test_json_schemas_can_grow_in_a_registry_that_checks_them(served: Served) -> None:
    step = worker(served, "json-schema", "debezium", on_conflict="widen")
    for item in ({}, {"a": {"S": "x"}}, {"a": {"N": "1"}, "n": {"NULL": True}}, {"l": {"L": []}, "n": {"S": "y"}}):
        (one,) = encode(step, item)
        assert decoded(served, "json-schema", one)["after"].keys() == {"id", *item}
    assert len(served.subjects[SUBJECT]) == 4


def test_the_registry_of_these_tests_refuses_what_confluents_refuses() -> None:
    text, number, nothing = {"type": "string"}, {"type": "number"}, {"type": "null"}
    old = {"type": "object", "properties": {"a": text}}
    new = {"type": "object", "properties": {"a": text, "b": text}}
    closed = {"additionalProperties": nothing}
    assert not goes_with(old, new), "PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL"
    assert not goes_with({**old, **closed}, {**new, **closed}), "b could have been null"
    assert goes_with({**old, **closed}, {**new, "properties": {"a": text, "b": {"oneOf": [nothing, text]}}, **closed})
    assert not goes_with(old, {"type": "object", "properties": {"a": number}})


def test_numbers_as_strings_are_strings_in_the_json_schema(served: Served) -> None:
    step = worker(served, "json-schema", {"kind": "plain", "numbers": "string"})
    (one,) = encode(step, {"n": {"N": "1.50"}, "ns": {"NS": ["2", "10"]}})
    assert decoded(served, "json-schema", one) == {"id": "1", "n": "1.50", "ns": ["2", "10"]}
    schema = json.loads(served.subjects[SUBJECT][-1]["schema"])
    assert schema["properties"]["n"]["oneOf"] == [{"type": "null"}, {"type": "string"}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_without_transactions_gets_them_behind_its_members(
    kind: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions registered none."""
    members = shape.debezium_members

    def without(event: Event, *, documents: bool) -> dict[str, Any]:
        return {name: one for name, one in members(event, documents=documents).items() if name != "transaction"}

    with monkeypatch.context() as earlier:
        earlier.setattr(registered, "debezium_members", without)
        (old,) = encode(worker(served, kind, "debezium"), {"a": {"S": "x"}})
    (new,) = encode(worker(served, kind, "debezium"), {"a": {"S": "y"}})
    numbers = {name: field.number for name, field in newest(served, kind).fields.items()}
    assert numbers == {
        **{name: n for n, name in enumerate(["before", "after", "source", "op", "ts_ms", "ts_us", "ts_ns"], 1)},
        "transaction": 8,
    }
    assert len(served.subjects[SUBJECT]) == 2
    for one in (old, new):
        assert decoded(served, kind, one).get("transaction") is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_sink_may_have_the_name_of_a_record(kind: str, served: Served) -> None:
    (one,) = encode(worker(served, kind, "debezium", "p.sink.Item"), {"a": {"S": "x"}})
    found = decoded(served, kind, one)["after"]
    assert (found.a if kind == "protobuf" else found["a"]) == "x"


def test_protobuf_takes_names_that_are_the_same_to_it(served: Served) -> None:
    step = worker(served, "protobuf", on_conflict="widen")
    names = {"_id": "1", "a_b": "2", "aB": "3", "w_text": "4", "a b": "5"}
    items = {name: {"S": value} for name, value in names.items()}
    _, one = encode(step, {"w": {"BOOL": True}}, {**items, "w": {"S": "6"}})
    found = decoded(served, "protobuf", one)
    assert sorted(found.values()) == ["1", "1", "2", "3", "4", "5", "6"]
    text = served.subjects[SUBJECT][-1]["schema"]
    assert protobuf.schema(protobuf.parse(text)) == text


def test_protobuf_is_read_as_confluents_registry_keeps_it() -> None:
    """The file is what Wire 6.4.7 printed of our schema: it moves comments, and records behind the members."""
    text = (SCHEMAS / "debezium-printed-by-wire.proto").read_text(encoding="utf-8")
    known = protobuf.parse(text)
    assert list(known.fields) == ["before", "after", "source", "op", "ts_ms", "ts_us", "ts_ns"]
    item = known.fields["after"].shape
    assert item is known.fields["before"].shape
    assert item is not None
    assert {name: (one.kind, one.number, one.wide) for name, one in item.fields.items()} == {
        "id": ("string", 1, False),
        "größe in m²": ("decimal", 2, False),
        "g": ("boolean", 3, True),
        "t": ("strings", 4, False),
    }

    def lines(proto: str) -> list[str]:
        return [line.strip() for line in proto.splitlines() if line.strip()]

    assert lines(text)[2:] == lines(protobuf.schema(known)), "ours has the same form, but for Wire's heading"


@pytest.mark.parametrize("text", ["", "{}", "}", 'syntax = "proto3";\nmessage a {\n optional string x = 1;\n}\n'])
def test_a_proto_file_of_others_is_known_for_what_it_is(text: str) -> None:
    with pytest.raises(ValueError, match="was not made by Headwater"):
        protobuf.parse(text)


def test_json_schemas_of_others_are_known_for_what_they_are() -> None:
    with pytest.raises(ValueError, match="was not made by Headwater"):
        json_schema.parse('{"type":"object"}')


@pytest.mark.parametrize(
    ("kind", "value"), [("avro", {"NS": ["x"]}), ("protobuf", {"NS": ["x"]}), ("protobuf", {"S": 5})]
)
def test_an_odd_value_rejects_its_change_and_no_other(kind: str, value: Any, served: Served) -> None:
    bad, good = encode(worker(served, kind), {"a": value}, {"b": {"S": "y"}})
    assert bad.error is not None
    assert decoded(served, kind, good)["b"] == "y"
