"""Partitioned reference tables: the current items of the partitions of raw that a worker has, by their own keys.

They are in the flow state, so they follow the slices: an item is put in the transaction of the slice that has its change,
and is as it was before when that is aborted. With it is the table's key schema, as each partition has seen it.
"""

from __future__ import annotations

from pipeline.state.table_partitions import TablePartition, Writes

ITEMS, SCHEMAS = b"r/", b"k/"


class PartitionItems:
    """The items of one partition, within a slice."""

    def __init__(self, part: TablePartition) -> None:
        self._part = part

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the item of an item key, in typed JSON."""
        return self._part.get(item_place(table, key))

    def put(self, table: str, key: bytes, item: bytes | None, key_schema: str) -> None:
        """Set or remove (None) an item of a table with this key schema."""
        writes: Writes = {item_place(table, key): item}
        if self.key_schema(table) != key_schema:
            writes[schema_of(table)] = key_schema.encode()
        self._part.write(writes)

    def key_schema(self, table: str) -> str:
        """Return the key schema of a table; '' before the first of its changes."""
        return (self._part.get(schema_of(table)) or b"").decode()


def item_place(table: str, key: bytes) -> bytes:
    """Return where an item is in the flow state."""
    return ITEMS + table.encode() + b"/" + key


def schema_of(table: str) -> bytes:
    """Return where a table's key schema is in the flow state."""
    return SCHEMAS + table.encode()
