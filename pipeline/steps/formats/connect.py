"""JSON with its schema in each message, as Kafka Connect's JsonConverter reads and writes it with `schemas.enable=true`. Pure.

There is no registry, so a schema knows the attributes of its own change: those of both images, so that a reader sees which ones
an update has taken away. It is made once for changes of one form.
"""

from __future__ import annotations

import base64
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, TypeAlias

from pipeline.settings.formats import EnvelopeSettings, FormatSettings
from pipeline.steps.envelope import Encoder
from pipeline.steps.event import Event, Step, each
from pipeline.steps.formats import avro
from pipeline.steps.formats.shape import (
    SOURCE,
    TRANSACTION,
    ConflictError,
    Document,
    Kind,
    debezium_members,
    debezium_names,
    key_members,
    kind_of,
    plain_members,
)
from pipeline.steps.forms import Numbers
from pipeline.steps.plain import NONE, Plain, Tagged, decode_item, encode, untagged

Form: TypeAlias = tuple[tuple[str, Kind], ...]
"""The members of a record, and of which kind each is."""
DECIMAL: dict[str, Any] = {
    "type": "bytes",
    "name": "org.apache.kafka.connect.data.Decimal",
    "version": 1,
    "parameters": {"scale": str(avro.SCALE), "connect.decimal.precision": str(avro.PRECISION)},
}
TYPES: dict[Kind, dict[str, Any]] = {
    "string": {"type": "string"},
    "decimal": DECIMAL,
    "boolean": {"type": "boolean"},
    "bytes": {"type": "bytes"},
    "json": {"type": "string"},
    "long": {"type": "int64"},
    "strings": {"type": "array", "items": {"type": "string", "optional": False}},
    "decimals": {"type": "array", "items": {**DECIMAL, "optional": False}},
    "byteses": {"type": "array", "items": {"type": "bytes", "optional": False}},
}
AS_TEXT: dict[Kind, Kind] = {"decimal": "string", "decimals": "strings"}
"""Kinds of members whose numbers are text."""
ENVELOPE_VERSION, TRANSACTION_VERSION = 2, 1
"""Of Debezium's schemas."""


def compile_schemas(envelope: EnvelopeSettings, settings: FormatSettings, topic: str) -> Encoder:
    """Return the step that puts the changes of a topic into an envelope, with their schemas."""
    values = _Values(envelope.numbers, widen=settings.on_conflict == "widen")
    if envelope.kind == "plain":
        return Encoder(each(partial(_plain, f"{topic}.Value", values, tombstone=envelope.tombstone is not False)))
    write = partial(_debezium, topic, values, documents=envelope.images == "document")
    return Encoder(each(write), tombstone_follows=bool(envelope.tombstone))


def compile_key_schemas(envelope: EnvelopeSettings, topic: str) -> Step:
    """Return the step that encodes the keys of a topic, with their schemas."""
    values = _Values(envelope.numbers, widen=False)

    def write(event: Event) -> None:
        form, payload = values(key_members(event))
        event.key_output = _message(_record_schema(f"{topic}.Key", tuple(form.items()), required=True), payload)

    return each(write)


def _plain(name: str, values: _Values, event: Event, *, tombstone: bool) -> None:
    if tombstone and event.change.after is None:
        event.output = None
        return
    form, payload = values(plain_members(event))
    if event.change.after is not None and (before := event.before_json) is not None:
        form = {**values(decode_item(before))[0], **form}
    event.output = _message(_record_schema(name, tuple(form.items()), required=False), payload)


def _debezium(topic: str, values: _Values, event: Event, *, documents: bool) -> None:
    members = dict(debezium_members(event, documents=documents))
    (before, old), (after, new), (source, _) = (values(members[name]) for name in ("before", "after", "source"))
    names = dict.fromkeys([*after, *before])
    # A reader finds in both images the attributes of either.
    whole = [
        tuple((name, first.get(name) or second[name]) for name in names)
        for first, second in ((before, after), (after, before))
    ]
    added, enriched = values(members.get("enriched"))
    schema = _envelope_schema(
        topic, whole[0], whole[1], tuple(source.items()), tuple(added.items()) if event.added else None
    )
    members |= {"before": old, "after": new} | ({"enriched": enriched} if event.added else {})
    event.output = _message(schema, members)


def _message(schema: bytes, payload: Any) -> bytes:
    return b'{"schema":%b,"payload":%b}' % (schema, encode(payload))


@lru_cache(maxsize=4096)
def _record_schema(name: str, form: Form, *, required: bool) -> bytes:
    return encode(_struct(name, form, required=required))


@lru_cache(maxsize=4096)
def _envelope_schema(topic: str, before: Form, after: Form, source: Form, added: Form | None) -> bytes:
    names = debezium_names(topic)
    optional = {"optional": True}
    times = [{"type": "int64", **optional, "field": name} for name in ("ts_ms", "ts_us", "ts_ns")]
    transaction = _struct(names["Transaction"], tuple(TRANSACTION.items()), required=True)
    fields = [
        {**_struct(names["Item"], before), **optional, "field": "before"},
        {**_struct(names["Item"], after), **optional, "field": "after"},
        {**_struct(SOURCE, source), "field": "source"},
        {"type": "string", "optional": False, "field": "op"},
        *times,
        {**transaction, **optional, "version": TRANSACTION_VERSION, "field": "transaction"},
    ]
    if added is not None:
        fields.append({**_struct(names["Enriched"], added), **optional, "field": "enriched"})
    envelope = {"type": "struct", "fields": fields, "optional": False, "name": f"{topic}.Envelope"}
    return encode({**envelope, "version": ENVELOPE_VERSION})


def _struct(name: str, form: Form, *, required: bool = False) -> dict[str, Any]:
    fields = [{**TYPES[kind], "optional": not required, "field": member} for member, kind in form]
    return {"type": "struct", "fields": fields, "optional": False, "name": name}


class _Values:
    """Makes values of Connect's JSON of documents."""

    def __init__(self, numbers: Numbers, *, widen: bool) -> None:
        self._as_text, self._widen = numbers == "string", widen

    def __call__(self, document: Document | None) -> tuple[dict[str, Kind], dict[str, Plain] | None]:
        """Return of which kind each member is, and their values; NULL says nothing about its kind, and is left out."""
        kinds: dict[str, Kind] = {}
        if document is None:
            return kinds, None
        values: dict[str, Plain] = {}
        for name, value in document.items():
            if not isinstance(value, Tagged):
                kinds[name], values[name] = "long" if isinstance(value, int) else "string", value
            elif (kind := kind_of(value)) is not None:
                try:
                    kinds[name], values[name] = self._value(name, kind, value)
                except ConflictError:
                    if not self._widen:
                        raise
                    kinds[name], values[name] = AS_TEXT[kind], _as_text(value)
        return kinds, values

    def _value(self, name: str, kind: Kind, value: Tagged) -> tuple[Kind, Plain]:
        if value.text is not NONE:
            return kind, value.text
        if kind in AS_TEXT:
            if self._as_text:
                return AS_TEXT[kind], _as_text(value)
            return kind, _decimals(value, f"the attribute {name}")
        if kind == "json":
            return kind, encode(untagged(value)).decode()
        return kind, untagged(value)


def _decimals(value: Tagged, place: str) -> Plain:
    """Return a number as Connect's Decimal, the unscaled bytes in base64, or a set of them."""
    if value.number is not None:
        return _decimal(value.number, place)
    return [_decimal(number, place) for number in sorted(value.numbers or (), key=Decimal)]


def _decimal(number: str, place: str) -> str:
    return base64.b64encode(avro.decimal(number, place)[1:]).decode()  # without its length


def _as_text(value: Tagged) -> Plain:
    return value.number if value.number is not None else sorted(value.numbers or (), key=Decimal)
