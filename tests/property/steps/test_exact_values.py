"""Nothing is lost on the way into plain JSON and Avro: what is read is what DynamoDB held."""

from __future__ import annotations

import base64
import io
import json
from decimal import Context, Decimal
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from support.made_events import event, items, names, record, records, values

from models.attributes import python_value
from pipeline.settings.formats import EnvelopeSettings, FormatSettings
from pipeline.steps.envelope import compile_envelope, source
from pipeline.steps.formats import avro, json_schema
from pipeline.steps.formats.connect import compile_schemas
from pipeline.steps.formats.names import escaped_name
from pipeline.steps.formats.shape import ConflictError, Shape, debezium_members, grow, plain_members
from pipeline.steps.forms import SAMPLE, WINDOW, Forms
from pipeline.steps.plain import encode, plain_added, plain_item, plain_json, plain_value, with_members

pytestmark = pytest.mark.slow


def said(value: Any) -> Any:
    """What plain JSON says of a typed value, numbers by their value."""
    ((tag, inner),) = value.items()
    if tag == "N":
        return Decimal(inner)
    if tag == "NS":
        return sorted(map(Decimal, inner))
    if tag in {"SS", "BS"}:
        return sorted(inner)
    if tag == "NULL":
        return None
    if tag == "L":
        return [said(one) for one in inner]
    if tag == "M":
        return {name: said(one) for name, one in inner.items()}
    return inner


@given(values)
@settings(max_examples=400, deadline=None)
def test_plain_json_is_exact(value: Any) -> None:
    text = encode(plain_value(json.dumps(value).encode()))
    assert json.loads(text, parse_float=Decimal, parse_int=Decimal) == said(value)


@given(items)
@settings(max_examples=300, deadline=None)
def test_what_our_encoder_writes_fastavro_reads(item: dict[str, Any]) -> None:
    whole = {"id": {"S": "x"}, **item}
    document = plain_members(event(record(whole)))
    shape = Shape("t")
    grow(shape, document, widen=False)
    try:
        encoded = avro.encoder(shape)(document)
    except ConflictError:
        avro.widen(shape, document)
        encoded = avro.encoder(shape)(document)
    schema = json.loads(avro.schema(shape))
    found: Any = fastavro.schemaless_reader(io.BytesIO(encoded), schema, None)
    for name, value in whole.items():
        ((tag, inner),) = value.items()
        if tag == "NULL":
            assert escaped_name(name) not in found
            continue
        read = found[escaped_name(name)]
        if tag in {"M", "L"} or (isinstance(read, str) and tag in {"N", "NS"}):
            text = read if tag != "N" else json.dumps(read)
            assert tag == "N" or json.loads(text, parse_float=Decimal, parse_int=Decimal) == said(value)
            assert tag != "N" or read == inner
        elif tag in {"SS", "NS", "BS"}:
            assert sorted(read) == sorted(python_value(value))
            assert len(read) == len(inner)
        else:
            assert read == python_value(value)


@given(items, items)
@settings(max_examples=200, deadline=None)
def test_the_fast_avro_encoder_writes_the_same_or_nothing(item: dict[str, Any], other: dict[str, Any]) -> None:
    shape = Shape("t")
    for number, one in enumerate((item, other)):
        document = plain_members(event(record({"id": {"S": "x"}, **one})))
        if number:
            fitting = avro.fitting_encoder(shape)
            shape.registered()
            try:
                fast: Any = fitting(document)
            except ConflictError:
                fast = None
            try:
                grow(shape, document, widen=False)
                whole = None if shape.grown else avro.encoder(shape)(document)
            except ConflictError:
                whole = None
            assert fast == whole
        grow(shape, document, widen=number > 0)


@given(items, items)
@settings(max_examples=200, deadline=None)
def test_members_are_added_to_written_json_as_to_the_item(item: dict[str, Any], more: dict[str, Any]) -> None:
    image = json.dumps(item).encode()
    added = plain_added({name: msgspec.Raw(json.dumps(value).encode()) for name, value in more.items()})
    found = with_members(plain_json(image), added)
    assert found is None or found == encode(plain_item(image) | added)
    assert found is not None or item


@given(records(), st.dictionaries(names, values, max_size=2), st.sampled_from(["exact", "string"]))
@settings(max_examples=200, deadline=None)
def test_debezium_is_written_as_its_members_would_be(value: bytes, more: dict[str, Any], numbers: Any) -> None:
    one = event(value)
    one.added = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in more.items()}
    compile_envelope(EnvelopeSettings.model_validate({"kind": "debezium", "numbers": numbers}))([one])
    change = one.change
    images = {
        name: None if image is None else plain_item(image, numbers)
        for name, image in (("before", change.before), ("after", change.after))
    }
    times = {"ts_ms": change.ts_us // 1_000, "ts_us": change.ts_us, "ts_ns": change.ts_us * 1_000}
    whole: dict[str, Any] = {**images, "source": source(change), "op": change.op, **times, "transaction": None}
    if more:
        whole["enriched"] = plain_added(one.added, numbers)
    assert one.output == encode(whole)


def of_connect(schema: Any, value: Any) -> Any:
    """What Kafka Connect makes of a value in its JSON."""
    if value is None:
        assert schema["optional"]
        return None
    if schema["type"] == "struct":
        return {field["field"]: of_connect(field, value.get(field["field"])) for field in schema["fields"]}
    if schema["type"] == "array":
        return [of_connect(schema["items"], one) for one in value]
    if schema.get("name") == "org.apache.kafka.connect.data.Decimal":
        unscaled = int.from_bytes(base64.b64decode(value), "big", signed=True)
        return Decimal(unscaled).scaleb(-int(schema["parameters"]["scale"]), Context(prec=60))
    assert isinstance(value, {"string": str, "bytes": str, "boolean": bool, "int64": int}[schema["type"]])
    return value


@given(records())
@settings(max_examples=300, deadline=None)
def test_json_with_its_schema_is_exact(value: bytes) -> None:
    one = event(value)
    compile_schemas(
        EnvelopeSettings(kind="debezium"), FormatSettings(kind="json", schemas=True, on_conflict="widen"), "p.sink.s"
    )([one])
    assert one.error is None
    message = json.loads(one.output or b"")
    found = of_connect(message["schema"], message["payload"])
    images = json.loads(value)["dynamodb"]
    for name, image in (("before", images.get("OldImage")), ("after", images.get("NewImage"))):
        assert (found[name] is None) == (image is None)
        for attribute, typed in (image or {}).items():
            ((tag, inner),) = typed.items()
            read = found[name].get(attribute)
            if tag in {"M", "L"}:
                read = json.loads(read, parse_float=Decimal, parse_int=Decimal)
            elif tag == "N" and isinstance(read, str):  # wider than the decimal
                read = Decimal(read)
            elif tag == "NS":
                read = sorted(map(Decimal, read))
            assert read == said(typed)
            assert tag != "N" or Decimal(inner) == read


@given(records())
@settings(max_examples=200, deadline=None)
def test_json_schema_with_debeziums_names_is_exact_and_what_it_says(value: bytes) -> None:
    one = event(value)
    shape = Shape("s.Envelope", names={"Item": "s.Value"})
    document = debezium_members(one, documents=False)
    try:
        grow(shape, document, widen=False)
    except ConflictError:
        grow(shape, document, widen=True)
    text = json_schema.encoder(shape)(document)
    Draft7Validator(json.loads(json_schema.schema(shape))).validate(json.loads(text))
    found = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    images = json.loads(value)["dynamodb"]
    for name, image in (("before", images.get("OldImage")), ("after", images.get("NewImage"))):
        for attribute, typed in (image or {}).items():
            read = found[name][attribute]
            if typed.keys() & {"M", "L"} and isinstance(read, str):
                read = json.loads(read, parse_float=Decimal, parse_int=Decimal)
            assert read == said(typed)


@given(
    st.lists(items, min_size=1, max_size=3), st.lists(items, max_size=3), st.sampled_from(["exact", "string", "shared"])
)
@settings(max_examples=300, deadline=None)
def test_an_item_of_a_known_form_is_written_as_any_other(
    known: list[dict[str, Any]], others: list[dict[str, Any]], numbers: Any
) -> None:
    forms = Forms(numbers)
    seen = [json.dumps(item, separators=(",", ":"), ensure_ascii=False).encode() for item in known]
    for _ in range(SAMPLE):  # each of them is a fair share of what is looked at
        for _ in range(WINDOW):
            forms.write(seen[0])
        for image in seen:
            forms.write(image)
    for image in (*seen, *(json.dumps(item, separators=(",", ":"), ensure_ascii=False).encode() for item in others)):
        found = forms.write(image)
        assert found is None or found == encode(plain_item(image, numbers))


def test_a_form_is_known_when_many_items_have_it_and_forgotten_when_none_has() -> None:
    forms = Forms("exact")
    old = (
        b'{"id":{"S":"a \\"b\\""},"at":{"M":{"n":{"N":"1.50"},"ok":{"BOOL":true}}},"no":{"NULL":true},"b":{"B":"AP8="}}'
    )
    new = b'{"id":{"S":"x"},"more%":{"N":"-2E+3"}}'
    for _ in range(SAMPLE * WINDOW):
        assert forms.write(old) is None
    assert forms.write(old) == b'{"id":"a \\"b\\"","at":{"n":1.50,"ok":true},"no":null,"b":"AP8="}'
    for odd in (b'{"N":"+1"}', b'{"N":"007"}', b'{"N":"1","S":"x"}', b'{"L":[]}', b'{"SS":["b","a"]}', b'{"N": "1"}'):
        assert forms.write(new.replace(b'{"N":"-2E+3"}', odd)) is None
    for _ in range(SAMPLE * WINDOW):
        forms.write(new)
    assert forms.write(new) == b'{"id":"x","more%":-2E+3}'
    assert forms.write(old) is None


def test_lists_and_sets_have_no_form() -> None:
    forms = Forms("exact")
    for image in (b'{"id":{"S":"1"},"tags":{"SS":["b","a"]}}', b'{"id":{"S":"1"},"parts":{"L":[]}}', b"[]", b"{"):
        for _ in range(SAMPLE * WINDOW + 1):
            assert forms.write(image) is None
