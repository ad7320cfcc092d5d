"""A Parquet file that grows in memory, row group by row group, compressed; and what its footer says."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, cast

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import TransientError
from pipeline.sinks.base import Rejected
from pipeline.sinks.lake.layouts import Layout
from pipeline.sinks.rows import Rows

GROUP_ROWS, GROUP_BYTES = 50_000, 32 << 20
"""Rows, or bytes in memory, that make a row group: large ones compress better and cost less a row."""
ENOUGH = 1_000
"""Rows from which on a table of them costs little beside them: then they are kept as one, in half the memory."""
RANGE = b"headwater.range"
"""Footer: the range of offsets whose rows this file and its siblings hold, and the siblings' paths."""


class Range(msgspec.Struct, frozen=True):
    """The offsets that one flush has brought into files: their end, and the paths of all of them."""

    end: int
    paths: list[str]
    log: str = ""
    """The log that they are of; '' where an earlier version has written the file, or where the broker gives no IDs."""


class FirstRow(NamedTuple):
    """What tells a file of one log from that of another at the same offset."""

    offset: int
    event_id: str


class OpenFile:
    """The rows of one directory, on their way into one file."""

    def __init__(self, layout: Layout, table: str, partition: int) -> None:
        self.table_name = table
        self.rows_written = 0
        self.oldest = self.newest = 0
        """Times of changes, in microseconds since the epoch."""
        self.sequences: tuple[str, str] = "", ""
        """Of the first and the last change."""
        self._layout, self._partition = layout, partition
        self._rows, self._rows_bytes = Rows(), 0
        self._tables: list[pa.Table] = []
        """What will be the next row group, beside the rows."""
        self._waiting_rows = self._waiting_bytes = 0
        """Of the tables."""
        self._first: FirstRow | None = None
        self._is_new = True
        self.refused: list[Rejected] = []
        """Records of which no row can be made."""
        self._buffer = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.rows_written + self._waiting_rows + len(self._rows)

    @property
    def first(self) -> FirstRow:
        """The first row; once the file is settled."""
        return cast("FirstRow", self._first)

    @property
    def first_offset(self) -> int:
        """The offset of the first row; once the file is settled."""
        return self.first.offset

    @property
    def size(self) -> int:
        """Bytes held in memory, roughly."""
        return self._buffer.tell() + self._waiting_bytes + self._rows_bytes

    @property
    def file_size(self) -> int:
        """Bytes that the file will have, roughly: images compress to a fifth or less."""
        return self._buffer.tell() + (self._waiting_bytes + self._rows_bytes) // 8

    def add(self, rows: Rows) -> None:
        """Take rows, of which there is one at least."""
        oldest, newest = min(rows.times), max(rows.times)
        if self._is_new:
            self._is_new, self.oldest, self.newest = False, oldest, newest
        self.oldest, self.newest = min(self.oldest, oldest), max(self.newest, newest)
        self._rows.extend(rows)
        self._rows_bytes += rows.size
        with suppress(TransientError):  # new columns cannot be decided on now: the rows wait
            if len(self._rows) >= ENOUGH:
                self._gather()
            if self._waiting_rows >= GROUP_ROWS or self._waiting_bytes + self._rows_bytes >= GROUP_BYTES:
                self._write_group()

    def settle(self) -> list[Rejected]:
        """Make tables of all rows; return the records that were refused since the last time.

        Raises TransientError, having changed nothing, when new columns cannot be decided on now.
        """
        self._gather()
        refused, self.refused = self.refused, []
        return refused

    def _gather(self) -> None:
        """Make a table of the rows: the changes that they were decoded to are given back."""
        before = len(self.refused)
        try:
            tables = self._tables_of(self._rows) if self._rows else []
        except TransientError:
            del self.refused[before:]  # they come again
            raise
        for table in tables:
            if self._first is None:
                self._first = first_row(table)
            self._tables.append(table)
            self._waiting_rows += table.num_rows
            self._waiting_bytes += table.nbytes
        self._rows, self._rows_bytes = Rows(), 0

    def _tables_of(self, rows: Rows) -> list[pa.Table]:
        """Return tables of rows; whatever is wrong with one of them, the others continue."""
        try:
            return [self._layout.table(self.table_name, self._partition, rows)]
        except TransientError:
            raise
        except Exception as error:  # noqa: BLE001 - the layouts take any change, as far as is known
            if len(rows) == 1:
                self.refused.append(Rejected(rows.records[0], error))
                return []
        half, places = len(rows) // 2, range(len(rows))
        return [*self._tables_of(rows.take(places[:half])), *self._tables_of(rows.take(places[half:]))]

    def _write_group(self) -> None:
        self._gather()
        if not self._tables:
            return
        tables, self._tables, self._waiting_rows, self._waiting_bytes = self._tables, [], 0, 0
        if any(table.schema != tables[-1].schema for table in tables):  # a column has come, or has grown wider
            tables = self._layout.align(self.table_name, *tables)
        self._write(pa.concat_tables(tables))

    def _write(self, table: pa.Table) -> None:
        if self._writer is not None and self._writer.schema != table.schema:
            before, table = self._layout.align(self.table_name, self._take_back(), table)
            self._append(before)
        self._append(table)
        sequences = table.column(f"{self._layout.prefix}sequence")
        self.sequences = self.sequences[0] if self.rows_written else sequences[0].as_py(), sequences[-1].as_py()
        self.rows_written += table.num_rows

    def _append(self, table: pa.Table) -> None:
        self._open_again()
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._buffer,
                table.schema,
                compression="zstd",  # level 1: half the bytes of snappy at equal cost, see docs/decisions/0011
                use_dictionary=self._layout.dictionary(table.schema),
                write_statistics=self._layout.statistics(table.schema),
            )
        self._writer.write_table(table, row_group_size=max(GROUP_ROWS, table.num_rows))

    def _open_again(self) -> None:
        """Continue with a file that was closed, for a range that somebody else had begun otherwise."""
        if self._writer is not None and not self._writer.is_open:
            self._append(self._take_back())

    def _take_back(self) -> pa.Table:
        """Return the row groups that were written, and begin again."""
        cast("pq.ParquetWriter", self._writer).close()
        self._writer = None
        table = pq.read_table(io.BytesIO(self._buffer.getvalue()))
        self._buffer = io.BytesIO()
        return table.replace_schema_metadata(None)

    def split(self, end: int) -> tuple[OpenFile | None, OpenFile | None]:
        """Return two files: of the records before an offset and of those from it on; None where there are none."""
        self._write_group()
        table = self._take_back()
        offsets = table.column(f"{self._layout.prefix}offset")
        parts = []
        for mask in (pc.less(offsets, end), pc.greater_equal(offsets, end)):
            rows = table.filter(mask)
            part = None
            if rows.num_rows:
                part = OpenFile(self._layout, self.table_name, self._partition)
                times = pc.min_max(rows.column(f"{self._layout.prefix}changed_at").cast(pa.int64())).as_py()
                part._first, part._is_new = first_row(rows), False
                part.oldest, part.newest = times["min"], times["max"]
                part._write(rows)
            parts.append(part)
        return parts[0], parts[1]

    def extend(self, later: OpenFile) -> None:
        """Take over the rows of another file, which all come after this one's."""
        self._write_group()
        later._write_group()
        rows = later._take_back()
        self._append(self._take_back())
        self._write(rows)

    def close(self, covered: Range) -> bytes:
        """Return the whole file, with its range in the footer. It can be split, or extended, and closed again."""
        self._write_group()
        self._open_again()
        writer = cast("pq.ParquetWriter", self._writer)
        writer.add_key_value_metadata({RANGE: msgspec.json.encode(covered)})
        writer.close()
        return self._buffer.getvalue()


def range_of(metadata: Mapping[bytes, bytes] | None) -> Range:
    """Return what the footer of a file says of its range."""
    return msgspec.json.decode((metadata or {})[RANGE], type=Range)


def range_in(content: bytes) -> Range:
    """Return what a whole file says of its range."""
    return range_of(pq.read_metadata(io.BytesIO(content)).metadata)


def first_row(table: pa.Table) -> FirstRow:
    """Return the first row of a table, of either layout."""
    prefix = "_" if "_offset" in table.schema.names else ""
    return FirstRow(*(table.column(f"{prefix}{name}")[0].as_py() for name in FirstRow._fields))


def first_row_in(content: bytes) -> FirstRow:
    """Return the first row of a whole file."""
    file = pq.ParquetFile(io.BytesIO(content))
    prefix = "_" if "_offset" in file.schema_arrow.names else ""
    batch = next(file.iter_batches(1, columns=[f"{prefix}{name}" for name in FirstRow._fields]))
    return first_row(pa.Table.from_batches([batch]))
