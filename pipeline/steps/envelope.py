"""The shape of what is written to a sink topic. Pure.

Each envelope is the last step of a flow: it sets `event.output`, and `event.headers` where it has headers of its own. All times
are the change's own, so that a replay writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from models.change import Change
from pipeline.flow_settings import Envelope
from pipeline.steps.event import Event, Step, each, join, split
from pipeline.steps.plain import Numbers, Plain, encode, plain_added, plain_item

VERSION = "1"
"""Of the connector, in Debezium's `source`."""
CE_TYPES = {"c": "insert", "u": "modify", "d": "remove", "r": "read"}


@dataclass(frozen=True, slots=True)
class Encoder:
    """The last step of a flow."""

    step: Step
    tombstone_follows: bool = False
    """Whether a tombstone follows what is written for a deletion."""

    def __call__(self, events: Sequence[Event]) -> None:
        """Encode events."""
        self.step(events)


def compile_envelope(settings: Envelope) -> Encoder:
    """Return the step that puts changes into an envelope, as JSON."""
    if settings.kind == "plain":
        return Encoder(each(_set(_plain(settings))))
    if settings.kind == "debezium":
        return Encoder(each(_set(_debezium(settings.numbers))), tombstone_follows=bool(settings.tombstone))
    if settings.kind == "cloudevents":
        return Encoder(each(_cloudevents(settings)))
    return Encoder(each(_as_aws))


def _set(document: Callable[[Event], Plain | None]) -> Callable[[Event], None]:
    def change(event: Event) -> None:
        found = document(event)
        event.output = None if found is None else encode(found)

    return change


# -- dynamodb ---------------------------------------------------------------------------------------------------------


def _as_aws(event: Event) -> None:
    """Write the record as AWS gave it, every member that no step has touched byte for byte; `enriched` stands at its end."""
    if not event.shaped:
        event.output = event.value
        if event.added:
            event.output = event.value.rstrip()[:-1] + b',"enriched":' + join(event.added) + b"}"
        return
    record = split(event.value)
    body = split(record["dynamodb"])
    for name, image in (("Keys", event.keys), ("NewImage", event.after), ("OldImage", event.before)):
        if image is not None:
            body[name] = msgspec.Raw(join(image))
    body.pop("SizeBytes", None)  # of the item as it was
    record["dynamodb"] = msgspec.Raw(join(body))
    if event.added:
        record["enriched"] = msgspec.Raw(join(event.added))
    event.output = join(record)


# -- plain ------------------------------------------------------------------------------------------------------------


def _plain(settings: Envelope) -> Callable[[Event], Plain | None]:
    tombstone, numbers = settings.tombstone is not False, settings.numbers

    def document(event: Event) -> Plain | None:
        return None if tombstone and event.change.after is None else plain_document(event, numbers)

    return document


def plain_document(event: Event, numbers: Numbers) -> dict[str, Plain]:
    """Return the item as the change left it, of a deletion as it was, with what was added; that wins over equal names."""
    image = event.after_json if event.change.after is not None else event.before_json
    found = {} if image is None else plain_item(image, numbers)
    if event.added:
        found |= plain_added(event.added, numbers)
    return found


# -- debezium ---------------------------------------------------------------------------------------------------------


def _debezium(numbers: Numbers) -> Callable[[Event], Plain]:
    def document(event: Event) -> Plain:
        change = event.change
        us = change.ts_us
        before, after = event.before_json, event.after_json
        found = {
            "before": None if before is None else plain_item(before, numbers),
            "after": None if after is None else plain_item(after, numbers),
            "source": source(change),
            "op": change.op,
            "ts_ms": us // 1_000,
            "ts_us": us,
            "ts_ns": us * 1_000,
            "transaction": None,
        }
        if event.added:
            found["enriched"] = plain_added(event.added, numbers)
        return found

    return document


def source(change: Change) -> dict[str, str | int]:
    """Return Debezium's `source`: the fields of every connector, and what names a change of DynamoDB.

    Those are version, connector, name, ts_ms, snapshot, db, sequence, ts_us, ts_ns; ours are table, stream_arn, event_id.
    """
    us = change.ts_us
    return {
        "version": VERSION,
        "connector": "headwater",
        "name": change.source,
        "ts_ms": us // 1_000,
        "snapshot": "true" if change.op == "r" else "false",
        "db": "",
        "sequence": change.body.sequence,
        "ts_us": us,
        "ts_ns": us * 1_000,
        "table": change.table,
        "stream_arn": change.arn,
        "event_id": change.event_id,
    }


# -- cloudevents ------------------------------------------------------------------------------------------------------


def _cloudevents(settings: Envelope) -> Callable[[Event], None]:
    numbers, structured = settings.numbers, settings.mode == "structured"

    def change(event: Event) -> None:
        before, after = event.before_json, event.after_json
        data: dict[str, Any] = {
            "before": None if before is None else plain_item(before, numbers),
            "after": None if after is None else plain_item(after, numbers),
        }
        if event.added:
            data["enriched"] = plain_added(event.added, numbers)
        attributes = _attributes(event, event.change)
        if structured:
            event.output = encode({**attributes, "datacontenttype": "application/json", "data": data})
            event.headers = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
        else:
            event.output = encode(data)
            event.headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
            event.headers.append(("content-type", b"application/json"))

    return change


def _attributes(event: Event, change: Change) -> dict[str, str]:
    when = datetime.fromtimestamp(change.ts_us / 1_000_000, UTC).isoformat(timespec="microseconds")
    return {
        "specversion": "1.0",
        "id": change.event_id,
        "source": change.arn.partition("/stream/")[0] or f"urn:headwater:{change.source}:{change.table}",
        "type": f"headwater.change.{CE_TYPES[change.op]}",
        "subject": (event.key or b"").decode(errors="replace"),
        "time": when.replace("+00:00", "Z"),
    }
