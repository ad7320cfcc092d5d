"""Changes for tests of steps: made of typed items, or drawn by hypothesis."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from models.change import decode, item_key
from pipeline.steps.event import Event, Step

Item = Mapping[str, Any]
ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-11-23T00:00:00.000"
OPS = {(True, False): "INSERT", (True, True): "MODIFY", (False, True): "REMOVE"}


def record(
    new: Item | None, old: Item | None = None, keys: Sequence[str] = ("id",), number: int = 1, table: str = "orders"
) -> bytes:
    """Return a record as on raw."""
    item = new if new is not None else old
    assert item is not None
    images = {name: image for name, image in (("NewImage", new), ("OldImage", old)) if image is not None}
    return json.dumps(
        {
            "eventID": f"e-{number}",
            "eventName": OPS[new is not None, old is not None],
            "eventSource": "aws:dynamodb",
            "dynamodb": {
                "ApproximateCreationDateTime": 1_764_000_000 + number,
                "Keys": {name: item[name] for name in keys},
                **images,
                "SequenceNumber": f"{number:021d}",
                "SizeBytes": 59,
            },
            "eventSourceARN": ARN.replace("orders", table),
        }
    ).encode()


def event(value: bytes) -> Event:
    """Return a record as steps get it."""
    change = decode(value)
    return Event(item_key(change.body.keys), value, change)


def outcome(one: Event) -> Any:
    """Return what a step made of an event, in a form that can be compared."""
    return {
        "key": one.key,
        "before": None if one.before_json is None else json.loads(one.before_json),
        "after": None if one.after_json is None else json.loads(one.after_json),
        "added": {name: json.loads(bytes(value)) for name, value in one.added.items()},
        "output": one.output,
        "headers": one.headers,
        "marks": one.marks,
        "gone": one.gone,
        "error": None if one.error is None else f"{type(one.error).__name__}: {one.error}",
    }


def done(step: Step, *values: bytes) -> list[Event]:
    """Return records after a step, given as one batch."""
    events = [event(value) for value in values]
    step(events)
    return events


texts = st.text(st.characters(codec="utf-8"), max_size=12)
digits = st.from_regex(r"\A-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,12})?(E[+-]?[1-9][0-9]?)?\Z")
binaries = st.binary(max_size=9).map(lambda content: base64.b64encode(content).decode())
scalars = st.one_of(
    st.builds(lambda x: {"S": x}, texts),
    st.builds(lambda x: {"N": x}, digits),
    st.builds(lambda x: {"B": x}, binaries),
    st.builds(lambda x: {"BOOL": x}, st.booleans()),
    st.just({"NULL": True}),
    st.builds(lambda x: {"SS": sorted(x)}, st.sets(texts, min_size=1, max_size=3)),
    st.builds(lambda x: {"NS": x}, st.lists(digits, min_size=1, max_size=3, unique_by=Decimal)),
    st.builds(lambda x: {"BS": sorted(x)}, st.sets(binaries, min_size=1, max_size=3)),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda x: {"L": x}, st.lists(inner, max_size=3)),
        st.builds(lambda x: {"M": x}, st.dictionaries(texts, inner, max_size=3)),
    ),
    max_leaves=6,
)
names = st.sampled_from(["total", "status", "email", "address", "phones", "größe", "a-b", "n"])
items = st.dictionaries(names, values, max_size=5)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """Draw a record: an insert, a modification or a deletion."""
    number = draw(st.integers(1, 40))
    key = {"id": {"S": f"k{number}"}}
    kind = draw(st.sampled_from(["new", "both", "old"]))
    new = {**key, **draw(items)} if kind != "old" else None
    old = {**key, **draw(items)} if kind != "new" else None
    return record(new, old, number=draw(st.integers(1, 10**6)))
