"""What a replica makes of changes: writes with versions, put together item by item. Pure.

A version is text, so that DynamoDB can compare it in a condition: `<time>.<rank>.<number>`, each part of a fixed width.
Of two changes of an item the newer one has the greater version, in whatever order, and how often, they come:

- time: `ts_us`, which every kind of change has.
- rank: 0 for a row of a snapshot, 1 for a change; so at equal time a row is older than any change.
- number: the sequence number, which grows with each change of an item in DynamoDB Streams. Where there is none (what DynamoDB
  delivers into Kinesis, rows) it is the offset in the sink topic, where all changes of an item share a partition: of
  two changes of the same microsecond the one that stands later wins. That number is the same whenever the record is
  read again.

A row of a snapshot counts as `ROW_AGE` older than it says: its time is that of the clock of the machine that scanned, while
that of a change is AWS's. A change that came after the row must win whatever that clock says; a row must win only over
what was there long before, when a gap is repaired.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import msgspec
from confluent_kafka import Message

from models.attributes import to_client
from models.change import Change, decode, item_key
from pipeline.errors import RejectedError
from pipeline.settings import Replica

ROW_AGE = 60_000_000
"""Microseconds."""
TIME_DIGITS = 16
"""Microseconds until the year 2286."""
NUMBER_DIGITS = 40
"""DynamoDB's sequence numbers have 21 to 40 digits: too many for its numbers, which have 38."""
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Place(NamedTuple):
    """An item of a replica."""

    table: str
    key: bytes
    """Its item key, canonical JSON."""


@dataclass(frozen=True, slots=True)
class Write:
    """What a change does to an item of the replica."""

    place: Place
    keys: bytes
    """The key attributes, as JSON."""
    image: bytes | None
    """The item, as JSON; None: it is deleted."""
    version: str
    versions: str
    """The table of versions."""
    is_new: bool
    """Whether the item was probably not there before."""
    record: Message

    def key(self) -> dict[str, Any]:
        """Return the key attributes as boto3 takes them."""
        return _for_client(self.keys)

    def item(self) -> dict[str, Any] | None:
        """Return the item as boto3 takes it, with its key, which a flow may have dropped from the image; None: deleted."""
        return None if self.image is None else {**_for_client(self.image), **self.key()}


def write(record: Message, replica: Replica) -> Write:
    """Return what a record of a sink topic does; raise ValueError or RejectedError when that cannot be known."""
    change = decode(cast("bytes", record.value()))
    if change.op != "d" and change.after is None:
        raise RejectedError(
            f"the change {change.event_id} of the table {change.table} does not say what the item becomes",
            hint="aws dynamodb update-table --stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES",
        )
    keys = bytes(change.body.keys)
    return Write(
        Place(target(replica.table, change.table), item_key(keys)),
        keys,
        None if change.op == "d" else change.after,
        version(change, cast("int", record.offset())),
        target(replica.version_table, change.table),
        change.op in {"c", "r"},
        record,
    )


def target(template: str, table: str) -> str:
    """Return the table of the replica for a captured one."""
    return template.replace("{table}", table)


def version(change: Change, offset: int) -> str:
    """Return the version that an item has by a change at an offset of the sink topic; see above."""
    time, number = change.ts_us, change.body.sequence or str(offset)
    if change.op == "r":
        time, number = max(0, time - ROW_AGE), str(offset)
    if not 0 <= time < 10**TIME_DIGITS:
        raise ValueError(f"ApproximateCreationDateTime is out of range: {change.body.created}")
    if not (number.isascii() and number.isdecimal()) or len(number) > NUMBER_DIGITS:
        raise ValueError(f"SequenceNumber is no number of at most {NUMBER_DIGITS} digits: {number!r}")
    return f"{time:0{TIME_DIGITS}d}.{change.op != 'r':d}.{number:0>{NUMBER_DIGITS}}"


def newest_first(writes: Iterable[Write]) -> list[list[Write]]:
    """Return the writes item by item, of each the newest first: the others count only when that one is refused."""
    items: dict[Place, list[Write]] = {}
    for one in writes:
        items.setdefault(one.place, []).append(one)
    return [sorted(some, key=lambda one: one.version, reverse=True) for some in items.values()]


def _for_client(image: bytes) -> dict[str, Any]:
    return {name: to_client(value) for name, value in _decode(image).items()}
