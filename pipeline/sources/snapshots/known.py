"""What the shards topic holds of snapshots. Pure.

The key `snapshot:TABLE:ID/` holds the snapshot itself, `snapshot:TABLE:ID/NUMBER` how far one of its segments has been
scanned, `snapshot:TABLE:ID/export` where its export to S3 is, and `snapshot:TABLE:ID/cancel` that someone wants it to end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from models.gap import Gap
from models.snapshot import PREFIX
from pipeline.sources.shard_positions import ShardOf

CANCEL, EXPORT = "cancel", "export"
INITIAL = "initial"
"""The ID of the snapshot that the setting `snapshot` asks for: one a table, ever."""


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot of a table: what was asked for, and what became of it."""

    table: str
    id: str
    segments: int
    """Parts of the table that are scanned side by side."""
    units: float | None = None
    """Read capacity units a second that all segments take at most together; None: no limit."""
    state: Literal["wanted", "running", "done", "cancelled", "failed"] = "wanted"
    reason: str = ""
    """Why it has failed."""
    asked: float = 0.0
    """When it was asked for, began, ended: seconds since the epoch."""
    began: float = 0.0
    ended: float = 0.0
    expected: int = 0
    """Items of the table, as AWS counted them some hours ago."""
    rows: int = 0
    """What was read, in the end."""
    export: str = ""
    """`s3://bucket/prefix`: the rows come from an export to there, and not from scans."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state in {"done", "cancelled", "failed"}

    @property
    def stream(self) -> str:
        """What stands for the stream's ARN in its keys."""
        return f"{PREFIX}{self.table}:{self.id}"

    @property
    def place(self) -> ShardOf:
        """Where it is kept, and which worker looks after it."""
        return ShardOf(self.table, self.stream, "")

    def segment(self, number: int) -> ShardOf:
        """Return where the position of a segment is kept, and which worker scans it."""
        return ShardOf(self.table, self.stream, str(number))

    @property
    def export_place(self) -> ShardOf:
        """Where its export is recorded, and which worker asks for it."""
        return ShardOf(self.table, self.stream, EXPORT)


class Segment(msgspec.Struct, frozen=True):
    """How far a segment has been scanned."""

    after: dict[str, dict[str, str]] | None = None
    """The key of the last item, in DynamoDB's typed JSON; None: nothing yet, or all."""
    rows: int = 0
    units: float = 0.0
    finished: bool = False
    failed: str = ""
    """Why it cannot be scanned any further, '' as long as it can."""


class Export(msgspec.Struct, frozen=True):
    """The export of a snapshot's table."""

    arn: str
    files: str = ""
    """Key of the object that lists its files; '' while it is under way."""
    at: float = 0.0
    """The moment of which it holds the table, in seconds since the epoch."""
    failed: str = ""
    """Why there is none."""


def is_snapshot(stream: str) -> bool:
    """Say whether what is before the slash of a key is a snapshot, and not the ARN of a stream."""
    return stream.startswith(PREFIX)


def is_news(shard_id: str, value: bytes) -> bool:
    """Say whether a record of a snapshot makes something else happen: not so one more page."""
    return not shard_id.isdecimal() or b'"finished":true' in value or b'"failed":""' not in value


@dataclass(slots=True)
class Snapshots:
    """All snapshots that the shards topic knows, by `stream`."""

    all: dict[str, Snapshot] = field(default_factory=dict)
    segments: dict[str, dict[str, Segment]] = field(default_factory=dict)
    exports: dict[str, Export] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)

    def take(self, stream: str, shard_id: str, value: bytes | None) -> None:
        """Take a record of the topic in."""
        if shard_id == EXPORT:
            self.exports.pop(stream, None)
            if value is not None:
                self.exports[stream] = _export(value)
        elif value is None:
            self.segments.get(stream, {}).pop(shard_id, None)
        elif shard_id == CANCEL:
            self.cancelled.add(stream)
        elif shard_id:
            self.segments.setdefault(stream, {})[shard_id] = _segment(value)
        else:
            self.all[stream] = _snapshot(value)

    def running(self, table: str | None = None) -> list[Snapshot]:
        """Return the snapshots that run, of a table or of all."""
        return [one for one in list(self.all.values()) if one.state == "running" and table in {None, one.table}]

    def segment(self, snapshot: Snapshot, number: int) -> Segment:
        """Return how far a segment has been scanned."""
        return self.segments.get(snapshot.stream, {}).get(str(number), Segment())

    def scanned(self, snapshot: Snapshot) -> list[Segment]:
        """Return all segments of a snapshot."""
        return [self.segment(snapshot, number) for number in range(snapshot.segments)]

    def finished(self, snapshot: Snapshot) -> bool:
        """Say whether all segments have been scanned to their ends."""
        return all(segment.finished for segment in self.scanned(snapshot))

    def failure(self, snapshot: Snapshot) -> str:
        """Return why a snapshot cannot continue, or ''."""
        export = self.exports.get(snapshot.stream)
        return (export.failed if export else "") or next((s.failed for s in self.scanned(snapshot) if s.failed), "")

    def rows(self, snapshot: Snapshot) -> int:
        """Return how many items have been read so far."""
        return snapshot.rows or sum(segment.rows for segment in self.scanned(snapshot))


def repaired(gap: Gap, snapshots: Iterable[Snapshot], tables: Iterable[str] = ()) -> bool:
    """Say whether all items of a gap's table have been read again since: what was lost is there again, deletions excepted.

    `tables` are those that may have changes in it, for a gap of a topic; of none it is not known what was lost.
    """
    since = {snapshot.table for snapshot in snapshots if snapshot.state == "done" and snapshot.began > gap.at}
    wanted = {gap.table} if gap.table else set(tables)
    return bool(wanted) and wanted <= since


def ended(
    snapshot: Snapshot, state: Literal["done", "cancelled", "failed"], rows: int, at: float, reason: str = ""
) -> Snapshot:
    """Return the snapshot as it is when it has ended."""
    return msgspec.structs.replace(snapshot, state=state, rows=rows, ended=at, reason=reason)


_snapshot = msgspec.json.Decoder(Snapshot).decode
_export = msgspec.json.Decoder(Export).decode
_segment = msgspec.json.Decoder(Segment).decode
