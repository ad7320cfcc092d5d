"""What a snapshot writes among the changes: the rows of its table, and the marks of its beginning and its end.

The event ID of each says whose it is: `snapshot:TABLE:ID:` and then `begin`, `end`, or the digest of the item's key. So
the same row twice is a duplicate like any other.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import msgspec

PREFIX = "snapshot:"
BEGIN, END = "begin", "end"
SOURCE = "headwater:snapshot"
"""The `eventSource` of a row."""
encode = msgspec.json.encode


class SnapshotPart(NamedTuple):
    """What an event ID of a snapshot says. Tables have no colon in their names."""

    table: str
    snapshot: str
    what: str
    """`begin`, `end`, or a digest: then it is a row."""


def part(event_id: str) -> SnapshotPart | None:
    """Return what an event ID says, None when it is not a snapshot's."""
    if not event_id.startswith(PREFIX):
        return None
    table, _, rest = event_id[len(PREFIX) :].partition(":")
    snapshot, _, what = rest.partition(":")
    return SnapshotPart(table, snapshot, what)


def mark(table: str, snapshot: str, what: str) -> bytes:
    """Return a mark: what is behind it in a partition came later."""
    return encode({"eventID": f"{PREFIX}{table}:{snapshot}:{what}", "eventName": "MARK", "tableName": table})


def row_head(table: str, region: str, at: float) -> bytes:
    """Return what all rows of a page have in common: the members before the event ID's."""
    head = {"eventVersion": "1.1", "eventSource": SOURCE, "awsRegion": region, "tableName": table, "eventName": "READ"}
    return encode(head)[:-1] + b',"dynamodb":{"ApproximateCreationDateTime":%d,"Keys":' % int(at)


def row(head: bytes, table: str, snapshot: str, key: bytes, image: bytes | memoryview) -> bytes:
    """Return a row as a change with `eventName` READ: `key` are its key attributes, `image` is the item, as JSON."""
    digest = blake2b(key, digest_size=16).hexdigest()
    event_id = encode(f"{PREFIX}{table}:{snapshot}:{digest}")
    return b"".join((head, key, b',"NewImage":', image, b'},"eventID":', event_id, b"}"))
