"""The lake: sink topics as Parquet files.

Exactly once, without a lock: a file's name is made of the topic, the partition and the offset of its first record, it is
written only if there is none of that name, and the committed offset moves after it was written. Who finds the file there
(its own earlier try, a former owner, a zombie) reads from it where it ends, and goes on from there.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from faust.types import TP

from models.change import Change
from pipeline.metrics import Metrics
from pipeline.sinks.objects import Objects
from pipeline.transport import Participant, Slice

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
"""One row a change: images as typed JSON, and where in the sink topic the change stands."""
END = b"headwater.end_offset"
"""File metadata: the offset after the last record."""
DICTIONARY = ["table", "op", "source", "partition"]


class Row(NamedTuple):
    """One row, in the order of the schema."""

    event_id: str
    table: str
    op: str
    source: str
    changed_at: int
    sequence: str
    key: str
    before: str | None
    after: str | None
    enriched: str | None
    partition: int
    offset: int


def row(change: Change, key: bytes, partition: int, offset: int) -> Row:
    """Return the row of a change."""
    return Row(
        change.event_id,
        change.table,
        change.op,
        change.source,
        change.ts_us,
        change.body.sequence,
        key.decode(),
        _text(change.before),
        _text(change.after),
        _text(change.enriched),
        partition,
        offset,
    )


def _text(json: bytes | None) -> str | None:
    return None if json is None else json.decode()


def encode(rows: Iterable[Row], end: int) -> bytes:
    """Return a Parquet file of the rows; `end` is the offset after its last record."""
    columns = list(zip(*rows, strict=True))
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
    out = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({END: str(end).encode()}),
        out,
        compression="zstd",
        use_dictionary=DICTIONARY,
        write_statistics=["changed_at", "offset", "table"],
    )
    return out.getvalue()


def end_of(content: bytes) -> int:
    """Return the offset after the last record of a file."""
    metadata = pq.read_schema(io.BytesIO(content)).metadata or {}
    return int(metadata[END])


@dataclass(slots=True)
class _File:
    """What a partition has gathered for its next file. The rows from `sure` on belong to the slice under way."""

    opened: float
    rows: list[Row] = field(default_factory=list)
    end: int = 0
    sure: int = 0
    sure_end: int = 0
    written: bool = False


class Lake(Participant):
    """Gathers rows by partition of the sink topics and writes them as files."""

    def __init__(
        self,
        objects: Objects,
        sinks: Mapping[str, str],
        metrics: Metrics,
        *,
        max_rows: int,
        max_age: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects, self._metrics = objects, metrics
        self._sink_of = {topic: sink for sink, topic in sinks.items()}
        self._max_rows, self._max_age, self._clock = max_rows, max_age, clock
        self._files: dict[TP, _File] = {}
        self._skip: dict[TP, int] = {}
        """Offsets before these are in files that were found there: their records come again and are passed over."""

    def add(self, tp: TP, rows: Iterable[Row], end: int) -> None:
        """Gather rows of a partition up to an offset; in the transaction's thread."""
        file = self._files.setdefault(tp, _File(self._clock()))
        if not file.rows:
            file.opened = self._clock()
        skip = self._skip.get(tp, 0)
        file.rows.extend(row for row in rows if row.offset >= skip)
        file.end = max(end, skip)

    def due(self) -> bool:
        """Say whether a file is old enough to be closed."""
        return any(self._is_due(file) for file in list(self._files.values()))

    def finish(self, work: Slice) -> None:
        """Write the files that are due; hold back the offsets of what is not in a file yet."""
        for tp, file in self._files.items():
            if self._is_due(file):
                self._write(tp, file)
                file.written = True
            if file.written or not file.rows:
                work.offsets[tp] = file.end
            else:
                work.offsets.pop(tp, None)

    def committed(self, work: Slice) -> None:
        """Let go of what is in files."""
        for tp, file in list(self._files.items()):
            if file.written or not file.rows:
                del self._files[tp]
            else:
                file.sure, file.sure_end = len(file.rows), file.end

    def aborted(self, work: Slice) -> None:
        """Forget the rows of the slice: they will be delivered again. What was written is found there then."""
        for tp, file in list(self._files.items()):
            del file.rows[file.sure :]
            file.end, file.written = file.sure_end, False
            if not file.rows:
                del self._files[tp]

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Forget partitions: their next owner reads from the committed offset."""
        for tp in partitions:
            self._files.pop(tp, None)
            self._skip.pop(tp, None)

    def _is_due(self, file: _File) -> bool:
        return bool(file.rows) and (len(file.rows) >= self._max_rows or self._clock() - file.opened >= self._max_age)

    def _write(self, tp: TP, file: _File) -> None:
        rows, sink = file.rows, self._sink_of[tp.topic]
        while rows:
            path = f"sink={sink}/{tp.topic}+{tp.partition}+{rows[0].offset:020d}.parquet"
            if self._objects.create(path, encode(rows, file.end)):
                self._metrics.count(self._metrics.files, 1, sink)
                self._metrics.count(self._metrics.rows, len(rows), sink)
                return
            there = end_of(self._objects.read(path))
            rows = [row for row in rows if row.offset >= there]
            self._skip[tp] = there
            file.end = max(file.end, there)
