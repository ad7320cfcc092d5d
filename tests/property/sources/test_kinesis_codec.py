"""What goes into a Kinesis record comes out of it, whatever it is."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.settings.sources import KinesisSettings
from pipeline.sources.base import Unreadable
from pipeline.sources.kinesis.kpl import MAGIC, NotAggregatedError, Sub, aggregate, deaggregate
from pipeline.sources.kinesis.records import ExactNumber, Put, changes

AS_JSON = KinesisSettings(kind="kinesis", streams=("*",), codec="json")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.builds(
    "{}{}{}".format,
    st.integers(-(10**40), 10**40),
    st.sampled_from(["", ".0", ".10", ".000000000000000000001"]),
    st.sampled_from(["", "e5", "E-7", "e+300"]),
)
Json = Any
VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | TEXT | NUMBERS.map(ExactNumber),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def written(value: Json) -> str:
    """JSON with the digits of numbers as they are."""
    if isinstance(value, ExactNumber):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{written(one)}" for name, one in value.items()) + "}"
    return json.dumps(value)


def untyped(value: dict[str, Any]) -> Json:
    ((tag, inner),) = value.items()
    if tag == "L":
        return [untyped(one) for one in inner]
    if tag == "M":
        return {name: untyped(one) for name, one in inner.items()}
    return ExactNumber(inner) if tag == "N" else None if tag == "NULL" else inner


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_json_comes_out_of_the_typed_form_as_it_went_in(fields: dict[str, Json]) -> None:
    (found,) = changes(Put("a:stream/s", "shard", "1", "p", 0.0, written(fields).encode()), AS_JSON)
    assert not isinstance(found, Unreadable)
    image = json.loads(found["value"])["dynamodb"]["NewImage"]
    assert written(untyped({"M": image})) == written(fields)


@given(st.lists(st.builds(Sub, TEXT, st.binary(max_size=300)), max_size=20))
def test_records_come_out_of_an_aggregated_one_as_they_went_in(subs: list[Sub]) -> None:
    assert deaggregate(aggregate(subs)) == subs


@given(st.binary(max_size=200))
def test_a_message_of_any_bytes_is_read_or_refused(message: bytes) -> None:
    data = MAGIC + message + hashlib.md5(message, usedforsecurity=False).digest()
    try:
        deaggregate(data)
    except NotAggregatedError:
        return
