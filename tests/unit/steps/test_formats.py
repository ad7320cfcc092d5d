"""Avro, Protobuf and JSON Schema, read by the stock deserializers of confluent-kafka."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from jsonschema import Draft7Validator
from support.made_events import event, record

from pipeline.services.registry import SchemaRegistry
from pipeline.settings.formats import EnvelopeSettings, FormatSettings
from pipeline.settings.kafka import RegistrySettings
from pipeline.steps.event import Event
from pipeline.steps.formats import avro, json_schema, protobuf
from pipeline.steps.formats.names import escaped_name, original
from pipeline.steps.formats.registered import CODECS, compile_format
from pipeline.steps.formats.shape import MOST_FIELDS, ConflictError, Shape

TOPIC = "p.sink.orders"
CONTEXT = SerializationContext(TOPIC, MessageField.VALUE)
ORDER: dict[str, Any] = {
    "id": {"S": 'naïve "客户" \\ \n'},
    "total": {"N": "12345678901234567890.123456789"},
    "debt": {"N": "-0.5"},
    "gift": {"BOOL": True},
    "coupon": {"NULL": True},
    "seal": {"B": "AP8="},
    "tags": {"SS": ["b", "a"]},
    "sizes": {"NS": ["10", "-2.5"]},
    "hashes": {"BS": ["AP8=", "AQ=="]},
    "parts": {"L": [{"S": "x"}, {"N": "1.50"}]},
    "größe in m²": {"M": {"a": {"N": "3"}}},
}


@pytest.fixture
def registry() -> SchemaRegistry:
    return SchemaRegistry(RegistrySettings(url="mock://tests"))


def client(registry: SchemaRegistry) -> SchemaRegistryClient:
    found: SchemaRegistryClient = registry._client
    return found


def encode(
    registry: SchemaRegistry, kind: str, *values: bytes, envelope: str = "plain", widen: bool = False
) -> list[Event]:
    settings = FormatSettings.model_validate({"kind": kind, "on_conflict": "widen" if widen else "reject"})
    step = compile_format(EnvelopeSettings.model_validate({"kind": envelope}), settings, TOPIC, registry)
    events = [event(value) for value in values]
    step(events)
    return events


def output(one: Event) -> bytes:
    assert one.error is None, one.error
    assert one.output is not None
    return one.output


def test_avro_is_read_by_the_stock_deserializer_and_exact(registry: SchemaRegistry) -> None:
    (one,) = encode(registry, "avro", record(ORDER))
    found = AvroDeserializer(client(registry))(output(one), CONTEXT)
    assert found == {
        "id": 'naïve "客户" \\ \n',
        "total": Decimal("12345678901234567890.123456789"),
        "debt": Decimal("-0.5"),
        "gift": True,
        "seal": b"\x00\xff",
        "tags": ["a", "b"],
        "sizes": [Decimal("-2.5"), Decimal(10)],
        "hashes": [b"\x00\xff", b"\x01"],
        "parts": '["x",1.50]',
        escaped_name("größe in m²"): '{"a":3}',
    }
    text: Any = client(registry).get_latest_version(f"{TOPIC}-value").schema.schema_str
    assert {field["attribute"] for field in json.loads(text)["fields"]} == set(ORDER) - {"coupon"}


def test_json_schema_is_read_by_the_stock_deserializer(registry: SchemaRegistry) -> None:
    (one,) = encode(registry, "json-schema", record(ORDER))
    found: Any = JSONDeserializer(None, schema_registry_client=client(registry))(output(one), CONTEXT)
    assert found["tags"] == ["a", "b"]
    assert found["größe in m²"] == {"a": 3}
    assert b"12345678901234567890.123456789" in output(one)


def test_protobuf_is_read_by_the_stock_deserializer(registry: SchemaRegistry) -> None:
    (one,) = encode(registry, "protobuf", record(ORDER))
    text: Any = client(registry).get_latest_version(f"{TOPIC}-value").schema.schema_str
    made = protobuf.message_class(protobuf.parse(text))
    read: Callable[..., Any] = ProtobufDeserializer(made, {"use.deprecated.format": False})
    found = read(output(one), CONTEXT)
    assert found.total == "12345678901234567890.123456789"
    assert found.gift is True
    assert list(found.hashes) == [b"\x00\xff", b"\x01"]
    assert getattr(found, escaped_name("größe in m²")) == '{"a":3}'


@pytest.mark.parametrize("kind", ["avro", "protobuf", "json-schema"])
def test_a_shape_comes_back_from_its_schema(kind: str, registry: SchemaRegistry) -> None:
    encode(registry, kind, record(ORDER, {**ORDER, "gift": {"BOOL": False}}), envelope="debezium")
    text = registry.latest(f"{TOPIC}-value")
    assert text is not None
    codec = CODECS[kind]
    again = codec.parse(text)
    assert codec.schema(again) == text
    assert list(again.fields) == ["before", "after", "source", "op", "ts_ms", "ts_us", "ts_ns", "transaction"]
    assert again.fields["before"].shape is again.fields["after"].shape
    with pytest.raises(ValueError, match="was not made by Headwater"):
        codec.parse("{}")


def test_debezium_in_avro(registry: SchemaRegistry) -> None:
    (one,) = encode(registry, "avro", record(ORDER), envelope="debezium")
    found: Any = AvroDeserializer(client(registry))(output(one), CONTEXT)
    assert found["before"] is None
    assert found["after"]["gift"] is True
    assert (found["op"], found["source"]["table"], found["ts_ms"]) == ("c", "orders", 1_764_000_001_000)
    assert found["transaction"] is None
    text: Any = client(registry).get_latest_version(f"{TOPIC}-value").schema.schema_str
    (transaction,) = [field for field in json.loads(text)["fields"] if field["name"] == "transaction"]
    assert transaction["default"] is None
    null, block = transaction["type"]
    fields = [(field["name"], field["type"]) for field in block["fields"]]
    nullable = [("id", "string"), ("total_order", "long"), ("data_collection_order", "long")]
    assert (null, fields) == ("null", [(name, ["null", kind]) for name, kind in nullable])


def test_debezium_in_avro_with_documents_as_confluents_connector_has_them(registry: SchemaRegistry) -> None:
    envelope = EnvelopeSettings(kind="debezium", images="document")
    one = event(record(ORDER))
    compile_format(envelope, FormatSettings(kind="avro"), TOPIC, registry)([one])
    found: Any = AvroDeserializer(client(registry))(output(one), CONTEXT)
    assert json.loads(found["after"]["document"]) == json.loads(one.value)["dynamodb"]["NewImage"]
    assert found["before"] is None
    assert (found["source"]["tableName"], found["source"]["sync_mode"]) == ("orders", "CDC")


@pytest.mark.parametrize("kind", ["avro", "protobuf", "json-schema"])
def test_schemas_grow_and_are_registered_once(kind: str, registry: SchemaRegistry) -> None:
    step = compile_format(
        EnvelopeSettings(kind="plain"), FormatSettings.model_validate({"kind": kind}), TOPIC, registry
    )
    first = [event(record({"id": {"S": "1"}})), event(record({"id": {"S": "1"}, "a": {"N": "1"}}))]
    step(first)
    assert output(first[0])[:5] == output(first[1])[:5], "one schema a batch"
    second = [event(record({"id": {"S": "2"}, "b": {"S": "x"}}))]
    step(second)
    step([event(record({"id": {"S": "2"}}))])
    assert len(client(registry).get_versions(f"{TOPIC}-value")) == 2


@pytest.mark.parametrize("kind", ["avro", "protobuf", "json-schema"])
def test_two_workers_grow_one_schema(kind: str, registry: SchemaRegistry) -> None:
    steps = [
        compile_format(EnvelopeSettings(kind="plain"), FormatSettings.model_validate({"kind": kind}), TOPIC, registry)
        for _ in "ab"
    ]
    steps[0]([event(record({"id": {"S": "1"}, "a": {"N": "1"}}))])
    steps[1]([event(record({"id": {"S": "1"}, "b": {"S": "1"}}))])
    third = event(record({"id": {"S": "1"}, "c": {"BOOL": True}, "a": {"N": "2"}, "b": {"S": "z"}}))
    steps[0]([third])
    shape = CODECS[kind].parse(registry.latest(f"{TOPIC}-value") or "")
    assert [(name, one.number) for name, one in shape.fields.items()] == [("id", 1), ("a", 2), ("b", 3), ("c", 4)]
    assert third.error is None


@pytest.mark.parametrize("kind", ["avro", "protobuf", "json-schema"])
def test_a_value_of_another_type_is_rejected_with_the_reason_or_widens_the_schema(
    kind: str, registry: SchemaRegistry
) -> None:
    values = [record({"id": {"S": "1"}, "a": {"BOOL": True}}), record({"id": {"S": "1"}, "a": {"S": "later"}})]
    good, bad = encode(registry, kind, *values)
    assert good.output is not None
    assert isinstance(bad.error, ConflictError)
    assert str(bad.error) == "orders: the attribute a is boolean in the schema, and here string"
    wide = encode(registry, kind, *values, widen=True)
    text = registry.latest(f"{TOPIC}-value") or ""
    if kind == "avro":
        found: list[Any] = [AvroDeserializer(client(registry))(output(one), CONTEXT) for one in wide]
        assert [one["a"] for one in found] == [True, "later"]
    elif kind == "protobuf":
        made = protobuf.message_class(protobuf.parse(text))
        read: Callable[..., Any] = ProtobufDeserializer(made, {"use.deprecated.format": False})
        first, second = (read(output(one), CONTEXT) for one in wide)
        assert (first.a, first.a_text, second.a_text) == (True, "", "later")
    else:
        reader = JSONDeserializer(None, schema_registry_client=client(registry))
        rows: list[Any] = [reader(output(one), CONTEXT) for one in wide]
        assert [row["a"] for row in rows] == [True, "later"]


def test_a_number_that_avros_decimal_cannot_hold_is_rejected_or_widens(registry: SchemaRegistry) -> None:
    values = [record({"id": {"S": "1"}, "n": {"N": "1.5"}}), record({"id": {"S": "1"}, "n": {"N": "1E-130"}})]
    _, bad = encode(registry, "avro", *values)
    assert "cannot hold this number" in str(bad.error)
    found: list[Any] = [
        AvroDeserializer(client(registry))(output(one), CONTEXT)
        for one in encode(registry, "avro", *values, widen=True)
    ]
    assert [one["n"] for one in found] == [Decimal("1.5"), "1E-130"]


def test_what_another_made_is_not_overwritten(registry: SchemaRegistry) -> None:
    theirs = '{"type":"record","name":"o","fields":[{"name":"x","type":"long"}]}'
    client(registry).register_schema(f"{TOPIC}-value", Schema(theirs, "AVRO"))
    (one,) = encode(registry, "avro", record(ORDER))
    assert "was not made by Headwater" in str(one.error)
    assert registry.latest(f"{TOPIC}-value") == theirs


def test_names_are_escaped_and_come_back() -> None:
    for name in ("plain", "a-b", "größe in m²", "1st", "_u002d_", "🦊", "a_u00e9_b", ""):
        assert original(escaped_name(name)) == name
        assert not name or escaped_name(name).isidentifier()


def test_a_map_used_as_a_dictionary_makes_no_schema_without_end() -> None:
    shape = Shape("t")
    for number in range(MOST_FIELDS):
        shape.field(f"a{number}", "string")
    with pytest.raises(ConflictError, match="more than 2000 attributes"):
        shape.field("one", "string")


def test_the_schemas_are_what_the_libraries_take_for_schemas() -> None:
    shape = Shape("orders")
    for number, kind in enumerate(avro.TYPES):
        shape.field(f"{kind}-{number}", kind).wide = number % 2 == 0
    fastavro.parse_schema(json.loads(avro.schema(shape)))
    Draft7Validator.check_schema(json.loads(json_schema.schema(shape)))
    assert protobuf.parse(protobuf.schema(shape)).fields.keys() == shape.fields.keys()
