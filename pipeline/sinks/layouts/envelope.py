"""The layout `envelope`: one row a change, the same columns for every table; images as typed JSON, as DynamoDB gives them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pyarrow as pa

from pipeline.sinks.layouts import Row

SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),
        pa.field("op", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("changed_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("sequence", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("before", pa.string()),
        pa.field("after", pa.string()),
        pa.field("enriched", pa.string()),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
    ]
)
"""Images as typed JSON, and where in the sink topic the change stands."""
DICTIONARY = ["table", "op", "source", "partition"]
"""Few values, many times. The others are different in every row: a dictionary would be built and thrown away."""
STATISTICS = ["changed_at", "offset", "table"]
"""What a reader can ask for a range of. The bounds of long JSON texts would only make the footer large."""


class EnvelopeLayout:
    """Rows of fixed columns."""

    prefix = ""

    def table(self, name: str, partition: int, rows: Sequence[Row]) -> pa.Table:
        """Return the changes as a table."""
        changes = [row.change for row in rows]
        bodies = [change.body for change in changes]
        count = len(rows)
        columns = [
            pa.array([change.event_id for change in changes], pa.string()),
            pa.repeat(pa.scalar(name, pa.string()), count),
            pa.array([change.op for change in changes], pa.string()),
            pa.array([change.source for change in changes], pa.string()),
            pa.array([change.ts_us for change in changes], pa.int64()).view(pa.timestamp("us", tz="UTC")),
            pa.array([body.sequence for body in bodies], pa.string()),
            texts([row.key for row in rows]),
            texts([raw(body.old_image) for body in bodies]),
            texts([raw(body.new_image) for body in bodies]),
            texts([raw(change.joined) for change in changes]),
            pa.repeat(pa.scalar(partition, pa.int32()), count),
            pa.array([row.offset for row in rows], pa.int64()),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)

    def align(self, name: str, table: pa.Table) -> pa.Table:
        """Return the table: its columns never change."""
        return table

    def dictionary(self, schema: pa.Schema) -> list[str]:
        """Return the columns of few values."""
        return DICTIONARY

    def statistics(self, schema: pa.Schema) -> list[str]:
        """Return the columns of ranges."""
        return STATISTICS


def raw(value: msgspec.Raw) -> bytes | None:
    """Return JSON as it stands in the message; None where there is none."""
    text = bytes(value)
    return None if not text or text == b"null" else text  # no set: it would hash the whole image


def texts(values: Sequence[bytes | None]) -> pa.Array:
    """Return UTF-8 bytes as strings; raises ArrowInvalid where they are none. No Python string is made."""
    return pa.array(values, pa.binary()).cast(pa.string())
