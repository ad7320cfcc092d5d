"""Nothing is lost on the way into plain JSON and Avro: what is read is what DynamoDB held."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from typing import Any

import fastavro
from events_made import event, items, record, values
from hypothesis import given, settings

from models.attributes import python_value
from pipeline.steps.formats import avro
from pipeline.steps.formats.names import escaped
from pipeline.steps.formats.shape import ConflictError, Shape, grow, plain_members
from pipeline.steps.plain import encode, plain_value


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
            assert escaped(name) not in found
            continue
        read = found[escaped(name)]
        if tag in {"M", "L"} or (isinstance(read, str) and tag in {"N", "NS"}):
            text = read if tag != "N" else json.dumps(read)
            assert tag == "N" or json.loads(text, parse_float=Decimal, parse_int=Decimal) == said(value)
            assert tag != "N" or read == inner
        elif tag in {"SS", "NS", "BS"}:
            assert sorted(read) == sorted(python_value(value))
            assert len(read) == len(inner)
        else:
            assert read == python_value(value)
