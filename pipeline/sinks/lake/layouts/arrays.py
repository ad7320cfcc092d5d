"""Arrow arrays of what changes consist of, made of whole columns: no Python object a value where bytes will do."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Literal, cast

import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from pipeline.sinks.rows import Rows
from pipeline.steps.route import REPLAY

_sequence, _before, _after, _joined, _event_id = map(
    attrgetter, ("body.sequence", "body.old_image", "body.new_image", "joined", "event_id")
)
NULL = b"null"
OF_ALL = frozenset({"event_id", "sequence"})
"""Headers that every message of a sink topic has."""
COMMON = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("op", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("changed_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("sequence", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("before", pa.string()),
        pa.field("enriched", pa.string()),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("topic", pa.string()),  # nullable, as `replay` is: tables of an earlier version have rows without it
        pa.field("replay", pa.string()),
    ]
)
"""The columns that both layouts have. Images are typed JSON, as DynamoDB gives them."""


def common(partition: int, rows: Rows) -> dict[str, pa.Array]:
    """Return the columns of `COMMON`, by name."""
    changes, kinds = rows.changes, rows.kinds
    return {
        "event_id": pa.array(list(map(_event_id, changes)), pa.string()),
        "op": pa.array([kind.op for kind in kinds], pa.string()),
        "source": pa.array([kind.source for kind in kinds], pa.string()),
        "changed_at": pa.array(rows.times, pa.int64()).view(pa.timestamp("us", tz="UTC")),
        "sequence": pa.array(list(map(_sequence, changes)), pa.string()),
        "key": texts(rows.keys, missing=None),
        "before": texts(list(map(_before, changes))),
        "enriched": texts(list(map(_joined, changes))),
        "partition": pa.repeat(pa.scalar(partition, pa.int32()), len(rows)),
        "offset": pa.array(rows.offsets, pa.int64()),
        "topic": pa.repeat(pa.scalar(rows.topic, pa.string()), len(rows)),
        "replay": pa.array(list(map(replay_column, rows.records)), pa.string()),
    }


def replay_column(record: Message) -> str | None:
    """Return the ID of the replay that has written a record to its live topic; None of any other."""
    for name, value in reversed(cast("list[tuple[str, bytes]]", record.headers() or ())):
        if name == REPLAY:
            return value.decode(errors="replace")
        if name in OF_ALL:  # what a replay adds is behind them
            return None
    return None


def after(rows: Rows) -> pa.Array:
    """Return the items after the changes, as typed JSON."""
    return texts(list(map(_after, rows.changes)))


def images(rows: Rows) -> list[msgspec.Raw]:
    """Return the items after the changes, of a deletion its key."""
    found = list(map(_after, rows.changes))
    lengths = list(map(len, found))
    if min(lengths, default=0) > len(NULL):
        return found
    for place, length in enumerate(lengths):
        if length == 0 or (length == len(NULL) and bytes(found[place]) == NULL):
            found[place] = rows.changes[place].body.keys
    return found


def texts(
    values: Sequence[bytes | msgspec.Raw],
    *,
    missing: Literal["empty", "null"] | None = "null",
    joined: bytes | None = None,
) -> pa.Array:
    """Return JSON, or other text that is known to be UTF-8, as strings.

    `missing`: what becomes null: what is empty, what is empty or JSON's null, or nothing. `joined`: all, if they are at hand.
    """
    count = len(values)
    lengths = np.fromiter(map(len, values), np.int64, count)
    ends = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    validity = None
    if missing is not None:
        absent = lengths == 0
        if missing == "null":
            for place in np.flatnonzero(lengths == len(NULL)).tolist():
                absent[place] = bytes(values[place]) == NULL
        if absent.any():
            validity = pa.py_buffer(np.packbits(~absent, bitorder="little"))
    # Offsets have 32 bits: a piece of a batch never has 2 GiB.
    buffers = [
        validity,
        pa.py_buffer(ends.astype(np.int32)),
        pa.py_buffer(b"".join(values) if joined is None else joined),
    ]
    return pa.Array.from_buffers(pa.string(), count, buffers)
