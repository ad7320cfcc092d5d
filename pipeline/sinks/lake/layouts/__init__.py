"""The layouts of lake files: what a row of a change is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import pyarrow as pa

from pipeline.sinks.rows import Rows


class Layout(Protocol):
    """Makes Arrow tables of changes. Each has the columns offset (rising), sequence and changed_at, after `prefix`."""

    prefix: str

    def table(self, name: str, partition: int, rows: Rows) -> pa.Table:
        """Return a table of the changes of one DynamoDB table; never fails, loses no value."""

    def align(self, name: str, *tables: pa.Table) -> list[pa.Table]:
        """Return tables that were made before with the columns that such a table has by now, all with the same."""

    def reserve(self, names: Iterable[str]) -> None:
        """Give attributes of these names no column: readers would find something else under them."""

    def dictionary(self, schema: pa.Schema) -> list[str]:
        """Return the columns that are worth a dictionary."""

    def statistics(self, schema: pa.Schema) -> list[str]:
        """Return the columns that readers may skip row groups by."""
