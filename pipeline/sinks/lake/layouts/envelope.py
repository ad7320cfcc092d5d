"""The layout `envelope`: one row a change, the same columns for every table; images as typed JSON, as DynamoDB gives them."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from pipeline.sinks.lake.layouts.arrays import COMMON, after, common
from pipeline.sinks.rows import Rows

NAMES = ["event_id", "table", "op", "source", "changed_at", "sequence", "key", "before", "after"]
NAMES += ["enriched", "partition", "offset", "topic", "replay"]
OWN = {"table": pa.field("table", pa.string(), nullable=False), "after": pa.field("after", pa.string())}
SCHEMA = pa.schema([OWN.get(name) or COMMON.field(name) for name in NAMES])
"""Images as typed JSON, and where in the sink topic the change is."""
DICTIONARY = ["table", "op", "source", "partition", "topic", "replay"]
"""Few values, many times. The others are different in every row: a dictionary would be built and thrown away."""
STATISTICS = ["changed_at", "offset", "table"]
"""What a reader can ask for a range of. The bounds of long JSON texts would only make the footer large."""


class EnvelopeLayout:
    """Rows of fixed columns."""

    prefix = ""

    def table(self, name: str, partition: int, rows: Rows) -> pa.Table:
        """Return the changes as a table."""
        columns = common(partition, rows)
        columns["table"] = pa.repeat(pa.scalar(name, pa.string()), len(rows))
        columns["after"] = after(rows)
        return pa.Table.from_arrays([columns[one] for one in SCHEMA.names], schema=SCHEMA)

    def align(self, name: str, *tables: pa.Table) -> list[pa.Table]:
        """Return the tables: their columns never change."""
        return list(tables)

    def reserve(self, names: Iterable[str]) -> None:
        """Do nothing: its columns are its own."""

    def dictionary(self, schema: pa.Schema) -> list[str]:
        """Return the columns of few values."""
        return DICTIONARY

    def statistics(self, schema: pa.Schema) -> list[str]:
        """Return the columns of ranges."""
        return STATISTICS
