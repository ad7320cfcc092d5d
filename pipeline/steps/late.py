"""Find late changes: of one item, delivered by Kinesis after a change that happened later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from models.change import MalformedChangeError, decode
from models.dead_letter import LATE

STREAMED = b'{"eventSourceARN":'
"""How our reader of DynamoDB Streams begins a record, and none that came through Kinesis: saves searching it all."""
DELIVERED = b'"recordFormat"'
"""A member that only DynamoDB's deliveries into Kinesis have; no other source is out of order."""


def marked(headers: Iterable[Sequence[tuple[str, bytes | None]]]) -> dict[int, int]:
    """Return the indices of records that say themselves that they are late, each with the time that they say."""
    found: dict[int, int] = {}
    for index, some in enumerate(headers):
        if some and (times := [value for name, value in some if name == LATE and value and value.isdigit()]):
            found[index] = int(times[-1])
    return found


def late_ones(records: Iterable[tuple[bytes | None, bytes]], newest: Callable[[bytes, int], int]) -> dict[int, int]:
    """Return the indices of late changes, each with the time (microseconds) of the change it should have come before.

    `records` are keys and values; `newest` remembers the time of an item (table and key), and returns the latest that it
    was given before.
    """
    found: dict[int, int] = {}
    for index, (key, value) in enumerate(records):
        if key is None or value.startswith(STREAMED) or DELIVERED not in value:
            continue
        try:
            change = decode(value)
        except (MalformedChangeError, RecursionError):
            continue  # transform will reject it
        item = change.table.encode() + key  # tables may have equal keys
        if change.record_format and (before := newest(item, change.ts_us)) > change.ts_us:
            found[index] = before
    return found
