"""The lake: sink topics as Parquet files.

Exactly once, without a lock: a file's name is made of the topic, the partition and the offset of its first record, it is
written only if there is none of that name, and the committed offset moves after it was written. Who finds the file there
(its own earlier try, a former owner, a zombie) reads from it where it ends, and goes on from there.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from faust.types import TP

from models.change import Change
from pipeline.errors import TransientError
from pipeline.metrics import Metrics
from pipeline.sinks.objects import Objects
from pipeline.transport import Participant, Slice

log = logging.getLogger(__name__)
SLOWEST = 30.0
"""Seconds of the longest pause before a file is tried again."""

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
    """Return the row of a change; raise ValueError when its time fits no timestamp."""
    if not -(1 << 63) <= change.ts_us < 1 << 63:
        raise ValueError(f"ApproximateCreationDateTime is out of range: {change.body.created}")
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


class Written(NamedTuple):
    """What an upload did: the offset up to which everything is in files now, and how many files and rows are new."""

    end: int
    files: int
    rows: int


@dataclass(slots=True)
class _File:
    """What a partition has gathered for its next file. The rows from `sure` on belong to the slice under way."""

    opened: float
    rows: list[Row] = field(default_factory=list)
    end: int = 0
    sure: int = 0
    sure_end: int = 0
    upload: Future[Written] | None = None
    recorded: Written | None = None
    """The upload whose end is in the slice under way."""
    not_before: float = 0.0
    failures: int = 0


class Lake(Participant):
    """Gathers rows by partition of the sink topics and writes them as files.

    Files are made and uploaded beside the slices, of rows whose slices have committed: neither a slow store nor a slow
    disk holds up a transaction. Where the store stays away, the partition is held.
    """

    def __init__(
        self,
        objects: Objects,
        sinks: Mapping[str, str],
        metrics: Metrics,
        *,
        max_rows: int,
        max_age: float,
        submit: Callable[..., Future[Written]],
        hold: Callable[[TP, bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects, self._metrics = objects, metrics
        self._sink_of = {topic: sink for sink, topic in sinks.items()}
        self._max_rows, self._max_age, self._clock = max_rows, max_age, clock
        self._submit, self._hold = submit, hold
        self._files: dict[TP, _File] = {}
        self._held: set[TP] = set()
        self._skip: dict[TP, int] = {}
        """Offsets before these are in files: records that come again, or that were found there, are passed over."""

    def add(self, tp: TP, rows: Iterable[Row], end: int) -> None:
        """Gather rows of a partition up to an offset; in the transaction's thread."""
        file = self._files.setdefault(tp, _File(self._clock()))
        skip = self._skip.get(tp, 0)
        file.rows.extend(row for row in rows if row.offset >= skip)
        file.end = max(end, skip)

    def due(self) -> bool:
        """Say whether a file is to be closed, or was written and is to be recorded."""
        return any(self._is_due(file) or self._is_written(file) for file in list(self._files.values()))

    def finish(self, work: Slice) -> None:
        """Close the files that are due; let the offsets follow what is in files, and hold back the others."""
        for tp, file in self._files.items():
            if self._is_due(file):
                file.upload = self._submit(self._write, tp, tuple(file.rows[: file.sure]), file.sure_end)
            file.recorded = self._outcome(tp, file)
            if file.recorded is not None:
                work.offsets[tp] = file.recorded.end
                self._metrics.count(self._metrics.delivered, file.recorded.files, "lake", "files")
                self._metrics.count(self._metrics.delivered, file.recorded.rows, "lake", "rows")
            elif file.rows:
                work.offsets.pop(tp, None)
            else:
                work.offsets[tp] = file.end

    def committed(self, work: Slice) -> None:
        """Let go of what is in files."""
        for tp, file in list(self._files.items()):
            if file.recorded is not None:
                end = self._skip[tp] = file.recorded.end
                file.rows = [row for row in file.rows if row.offset >= end]
                file.end, file.opened = max(file.end, end), self._clock()
                file.upload = file.recorded = None
            if not file.sure and file.rows:
                file.opened = self._clock()
            file.sure, file.sure_end = len(file.rows), file.end
            if not file.rows:
                del self._files[tp]
            self._hold_or_release(tp, len(file.rows) > 2 * self._max_rows)

    def aborted(self, work: Slice) -> None:
        """Forget the rows of the slice: they will be delivered again. A file that was written stays to be recorded."""
        for tp, file in list(self._files.items()):
            del file.rows[file.sure :]
            file.end, file.recorded = file.sure_end, None
            if not file.rows:
                del self._files[tp]

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Forget partitions: their next owner reads from the committed offset, and finds what is still written."""
        for tp in partitions:
            self._files.pop(tp, None)
            self._skip.pop(tp, None)
            self._held.discard(tp)

    def _is_due(self, file: _File) -> bool:
        now = self._clock()
        old_or_full = file.sure >= self._max_rows or now - file.opened >= self._max_age
        return file.upload is None and file.sure > 0 and old_or_full and now >= file.not_before

    def _is_written(self, file: _File) -> bool:
        return file.upload is not None and file.upload.done()

    def _outcome(self, tp: TP, file: _File) -> Written | None:
        """Return what an upload did; None while it goes on, or when it is to be tried again."""
        if file.upload is None or not file.upload.done():
            return None
        try:
            written = file.upload.result()
        except TransientError as error:
            file.upload, file.failures = None, file.failures + 1
            file.not_before = self._clock() + min(SLOWEST, 0.5 * 2.0 ** min(file.failures, 10))
            log.warning("%s[%d] is tried again: %s", tp.topic, tp.partition, error)
            return None
        file.failures = 0
        return written

    def _hold_or_release(self, tp: TP, too_much: bool) -> None:
        if too_much != (tp in self._held):
            (self._held.add if too_much else self._held.discard)(tp)
            self._hold(tp, too_much)

    def _write(self, tp: TP, rows: Sequence[Row], end: int) -> Written:
        """Write a file; in a thread of its own. What is there already under its name counts, and the rest follows it."""
        sink = self._sink_of[tp.topic]
        while rows:
            path = f"sink={sink}/{tp.topic}+{tp.partition}+{rows[0].offset:020d}.parquet"
            if self._objects.create(path, encode(rows, end)):
                return Written(end, 1, len(rows))
            there = end_of(self._objects.read(path))
            rows = [row for row in rows if row.offset >= there]
            end = max(end, there)
        return Written(end, 0, 0)
