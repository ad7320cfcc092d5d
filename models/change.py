"""A change: one item-level modification, as AWS delivered it, and the few fields of it that steps need."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import msgspec

from models import snapshot

Op = Literal["c", "u", "d", "r"]
NONE = msgspec.Raw()
"""A member that is not there: msgspec has no optional raw value."""

OPS: dict[str, Op] = {"INSERT": "c", "MODIFY": "u", "REMOVE": "d", "READ": "r"}
SOURCES = {"aws:dynamodb": "dynamodb-stream", "aws:kinesis": "kinesis", snapshot.SOURCE: "snapshot"}
MICROSECONDS = {"MICROSECOND": 1, "MILLISECOND": 1_000, "SECOND": 1_000_000}
"""By ApproximateCreationDateTimePrecision."""
canonical = msgspec.json.Encoder(order="sorted").encode
"""Encodes key attributes as the item key: sorted, without white space."""


def item_key(keys: bytes | msgspec.Raw) -> bytes:
    """Return the item key of key attributes as they are in a change: canonical JSON, the Kafka key everywhere."""
    return canonical(msgspec.json.decode(keys))


class MalformedChangeError(ValueError):
    """The value is not a change: not JSON, or without a field that every change has."""


class Body(msgspec.Struct, gc=False, frozen=True):
    """The member `dynamodb` of a stream record."""

    keys: msgspec.Raw = msgspec.field(name="Keys")
    new_image: msgspec.Raw = msgspec.field(name="NewImage", default=NONE)
    old_image: msgspec.Raw = msgspec.field(name="OldImage", default=NONE)
    sequence: str = msgspec.field(name="SequenceNumber", default="")
    created: float = msgspec.field(name="ApproximateCreationDateTime", default=0.0)
    precision: str = msgspec.field(name="ApproximateCreationDateTimePrecision", default="")


class Change(msgspec.Struct, gc=False, frozen=True):
    """The fields of a stream record that steps read; images stay bytes."""

    event_id: str = msgspec.field(name="eventID")
    event_name: str = msgspec.field(name="eventName")
    body: Body = msgspec.field(name="dynamodb")
    event_source: str = msgspec.field(name="eventSource", default="aws:dynamodb")
    arn: str = msgspec.field(name="eventSourceARN", default="")
    table_name: str = msgspec.field(name="tableName", default="")
    record_format: str = msgspec.field(name="recordFormat", default="")
    """What only DynamoDB's deliveries into Kinesis have."""
    joined: msgspec.Raw = msgspec.field(name="enriched", default=NONE)

    @property
    def op(self) -> Op:
        """What happened to the item: c insert, u modify, d remove, r snapshot read."""
        return OPS[self.event_name]

    @property
    def table(self) -> str:
        """The table's name, from the record itself or from the ARN of its stream."""
        return self.table_name or table_of(self.arn)

    @property
    def source(self) -> str:
        """Where the change came from, in the vocabulary of the product."""
        if self.record_format:
            return "kinesis"
        return SOURCES.get(self.event_source, self.event_source)

    @property
    def before(self) -> bytes | None:
        """The item before the change, in DynamoDB's typed JSON; decoded only where a step must look inside."""
        return _present(self.body.old_image)

    @property
    def after(self) -> bytes | None:
        """The item after the change, in DynamoDB's typed JSON."""
        return _present(self.body.new_image)

    @property
    def enriched(self) -> bytes | None:
        """What a flow has added, as JSON."""
        return _present(self.joined)

    @property
    def ts_us(self) -> int:
        """When it happened, in microseconds since the epoch.

        DynamoDB Streams rounds it down to the second; Kinesis says its precision, and old records, which do not, have ms.
        """
        return round(self.body.created * self.unit)

    @property
    def unit(self) -> int:
        """What its time counts, in microseconds."""
        unit = self.body.precision or ("MILLISECOND" if self.record_format else "SECOND")
        return MICROSECONDS.get(unit, 1_000_000)


def _present(raw: msgspec.Raw) -> bytes | None:
    value = bytes(raw)
    return None if not value or value == b"null" else value  # no set: it would hash the whole image


class EventId(msgspec.Struct, gc=False, frozen=True):
    """The one field that deduplication reads."""

    event_id: str = msgspec.field(name="eventID")


UNREADABLE = msgspec.DecodeError, UnicodeDecodeError
_decode = msgspec.json.Decoder(Change).decode
_decode_id = msgspec.json.Decoder(EventId).decode


@lru_cache(maxsize=4096)
def table_of(arn: str) -> str:
    """Return the table's name out of `arn:aws:dynamodb:region:account:table/NAME/stream/LABEL`, or ''."""
    resource = arn.rpartition(":table/")[2] if ":table/" in arn else ""
    return resource.partition("/")[0]


def _malformed(error: Exception) -> MalformedChangeError:
    return MalformedChangeError(f"not a change: {error}")


def decode(value: bytes) -> Change:
    """Read a change; raise MalformedChangeError when it is none."""
    try:
        change = _decode(value)
    except UNREADABLE as error:
        raise _malformed(error) from error
    check(change)
    return change


def decode_unchecked(values: Iterable[bytes]) -> list[Change]:
    """Read changes of which `check` is to be asked yet; raise MalformedChangeError when one cannot be read."""
    try:
        return list(map(_decode, values))
    except UNREADABLE as error:
        raise _malformed(error) from error


def check(change: Change) -> None:
    """Raise MalformedChangeError when nobody can tell what a change does, or to which table."""
    if change.event_name not in OPS:
        raise MalformedChangeError(f"unknown eventName {change.event_name!r}, expected one of {', '.join(OPS)}")
    if not (change.table_name or table_of(change.arn)):
        raise MalformedChangeError("neither tableName nor a table in eventSourceARN")


def event_ids(values: Iterable[bytes]) -> list[str]:
    """Return the event IDs of changes; raise MalformedChangeError when one has none."""
    try:
        found = [_decode_id(value).event_id for value in values]
    except UNREADABLE as error:
        raise _malformed(error) from error
    if "" in found:
        raise MalformedChangeError("eventID is empty")
    return found


def event_id(value: bytes) -> str:
    """Return the event ID of a change, and nothing else of it; raise MalformedChangeError when it has none."""
    return event_ids([value])[0]
