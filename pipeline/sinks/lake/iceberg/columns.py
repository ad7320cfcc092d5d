"""The columns of an Iceberg table: which hold attributes, and how their names must differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from pyiceberg.schema import make_compatible_name
from pyiceberg.table import Table

from pipeline.sinks.lake.layouts.columns import Kind, TableSchema

NAME_BYTES = 255
RESERVED = {
    "_file",
    "_pos",
    "_deleted",
    "_spec_id",
    "_partition",
    "_row_id",
    "_last_updated_sequence_number",
    "_change_type",
    "_change_ordinal",
    "_commit_snapshot_id",
}
"""What Iceberg's readers add to every table."""
DOC = "headwater:"
"""What the description of a column begins with that holds an attribute; then comes its kind."""
VERSION = "_item_version"
"""The age of an item's last change, see versions.py. Not `_version`: the items of AWS Amplify have such an attribute."""


def columns_of(table: Table | None) -> TableSchema:
    """Return the columns of a table that hold attributes, as their descriptions say."""
    fields: Iterable[Any] = table.schema().fields if table is not None else ()
    return TableSchema(
        {field.name: cast("Kind", field.doc.removeprefix(DOC)) for field in fields if (field.doc or "").startswith(DOC)}
    )


def spelling(name: str) -> str:
    """Return what must differ between the names of columns: as files spell it, in lower case; '' where there can be none."""
    if not name or "." in name or not name.isprintable() or len(name.encode()) > NAME_BYTES:
        return ""
    plain = str(make_compatible_name(name)).lower()
    return "" if plain in RESERVED else plain
