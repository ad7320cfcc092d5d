"""The shape of what is written to a sink topic. Pure.

Each envelope is the last step of a flow: it sets `event.output`, and `event.headers` where it has headers of its own. All times
are the change's own, so that a replay writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

import msgspec

from models.change import Change
from pipeline.settings.formats import EnvelopeSettings
from pipeline.steps.event import Event, Step, each, join, split
from pipeline.steps.plain import encode, plain_added, plain_item, plain_json, with_members

VERSION = "1"
"""Of the connector, in Debezium's `source`."""
CE_TYPES = {"c": "insert", "u": "modify", "d": "remove", "r": "read"}


@dataclass(frozen=True, slots=True)
class Encoder:
    """The last step of a flow."""

    step: Step
    tombstone_follows: bool = False
    """Whether a tombstone follows what is written for a deletion."""
    keys: Step | None = None
    """Sets `event.key_output`; None: the key is the item key."""

    def __call__(self, events: Sequence[Event]) -> None:
        """Encode events."""
        self.step(events)


def compile_envelope(settings: EnvelopeSettings) -> Encoder:
    """Return the step that puts changes into an envelope, as JSON."""
    if settings.kind == "plain":
        return Encoder(each(_plain(settings)))
    if settings.kind == "debezium":
        return Encoder(each(_debezium(settings)), tombstone_follows=bool(settings.tombstone))
    if settings.kind == "cloudevents":
        return Encoder(each(_cloudevents(settings)))
    return Encoder(each(_as_aws))


# -- dynamodb ---------------------------------------------------------------------------------------------------------


def _as_aws(event: Event) -> None:
    """Write the record as AWS gave it, every member that no step has touched byte for byte; `enriched` is at its end."""
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


def _plain(settings: EnvelopeSettings) -> Callable[[Event], None]:
    tombstone, numbers = settings.tombstone is not False, settings.numbers

    def change(event: Event) -> None:
        """Write the item as the change left it, of a deletion as it was, with what was added; that wins over equal names."""
        image = event.after_json
        if image is None:
            if tombstone:
                event.output = None
                return
            image = event.before_json
        added = plain_added(event.added, numbers) if event.added else {}
        written = event.plain_after if numbers == "exact" else None
        if written is None and image is not None:
            written = plain_json(image, numbers)
        if written is None or (output := with_members(written, added)) is None:
            output = encode(({} if image is None else plain_item(image, numbers)) | added)
        event.output = output

    return change


# -- debezium ---------------------------------------------------------------------------------------------------------


SLOT = msgspec.Raw(b"\0")
"""Marks in JSON what differs from change to change: no JSON has that byte."""


def _debezium(settings: EnvelopeSettings) -> Callable[[Event], None]:
    numbers = settings.numbers
    image = _document if settings.images == "document" else partial(plain_json, numbers=numbers)

    def write(event: Event) -> None:
        change = event.change
        us = change.ts_us
        times = ts_ms, ts_us, ts_ns = b"%d" % (us // 1_000), b"%d" % us, b"%d" % (us * 1_000)
        sequence, event_id = encode(change.body.sequence), encode(change.event_id)
        output = _around(change.op, change.source, change.table, change.arn) % (
            *(image(event.before_json), image(event.after_json)),
            *(ts_ms, sequence, ts_us, ts_ns, event_id, sequence if change.body.sequence else b"null"),
            *times,
        )
        if event.added:
            output = b'%b,"enriched":%b}' % (output[:-1], encode(plain_added(event.added, numbers)))
        event.output = output

    return write


def _document(image: bytes | None) -> bytes:
    """Return an item as Confluent's connector has it: its typed JSON as one text."""
    return b"null" if image is None else b'{"document":%b}' % encode(image.decode())


@lru_cache(maxsize=4096)
def _around(op: str, name: str, table: str, arn: str) -> bytes:
    """Return Debezium's envelope with a %b for each value that is a change's own, in their order."""
    own = dict.fromkeys(("ts_ms", "ts_us", "ts_ns", "sequence", "event_id", "seq_no"), SLOT)
    found = {
        "before": SLOT,
        "after": SLOT,
        "source": _source(op, name, table, arn, **own),
        "op": op,
        "ts_ms": SLOT,
        "ts_us": SLOT,
        "ts_ns": SLOT,
        "transaction": None,
    }
    return encode(found).replace(b"%", b"%%").replace(bytes(SLOT), b"%b")


def source(change: Change) -> dict[str, str | int | None]:
    """Return Debezium's `source`, with the keys of three kinds of readers.

    Every Debezium connector has version, connector, name, ts_ms, snapshot, db, sequence, ts_us, ts_ns. Confluent's for Amazon
    DynamoDB CDC has version, tableName, sync_mode, ts_ms, ts_us, ts_ns, snapshotStartTime, snapshotCount, segment,
    totalSegments, shard_id, seq_no (as its schema in the registry says); five of them a change on raw does not know, they are
    None, as that connector has them where they do not apply. Ours are table, stream_arn, event_id.
    """
    us = change.ts_us
    return _source(
        change.op,
        change.source,
        change.table,
        change.arn,
        ts_ms=us // 1_000,
        ts_us=us,
        ts_ns=us * 1_000,
        sequence=change.body.sequence,
        event_id=change.event_id,
        seq_no=change.body.sequence or None,
    )


def _source(op: str, name: str, table: str, arn: str, **own: Any) -> dict[str, Any]:
    return {
        "version": VERSION,
        "connector": "headwater",
        "name": name,
        "ts_ms": own["ts_ms"],
        "snapshot": "true" if op == "r" else "false",
        "db": "",
        "sequence": own["sequence"],
        "ts_us": own["ts_us"],
        "ts_ns": own["ts_ns"],
        "table": table,
        "stream_arn": arn,
        "event_id": own["event_id"],
        "tableName": table,
        "sync_mode": "SNAPSHOT" if op == "r" else "CDC",
        "snapshotStartTime": None,
        "snapshotCount": None,
        "segment": None,
        "totalSegments": None,
        "shard_id": None,
        "seq_no": own["seq_no"],
    }


# -- cloudevents ------------------------------------------------------------------------------------------------------


def _cloudevents(settings: EnvelopeSettings) -> Callable[[Event], None]:
    numbers, structured = settings.numbers, settings.mode == "structured"

    def change(event: Event) -> None:
        data: dict[str, Any] = {
            "before": msgspec.Raw(plain_json(event.before_json, numbers)),
            "after": msgspec.Raw(plain_json(event.after_json, numbers)),
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
        # Two events with one source have two IDs: the change itself goes to another sink.
        "id": f"{change.event_id}.left" if event.moved else change.event_id,
        "source": change.arn.partition("/stream/")[0] or f"urn:headwater:{change.source}:{change.table}",
        "type": f"headwater.change.{CE_TYPES[change.op]}",
        "subject": (event.key or b"").decode(errors="replace"),
        "time": when.replace("+00:00", "Z"),
    }
