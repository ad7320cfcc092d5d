"""A table as a whole: what it is, and its items, page by page, as rows of a snapshot. Blocking, thread-safe."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from models.change import canonical
from models.snapshot import row, row_head
from pipeline.errors import FatalError, TransientError
from pipeline.services.aws import ERRORS, client, explained_aws, take_body, taken_body
from pipeline.sources.base import Cut
from pipeline.sources.snapshots.known import Segment, Snapshot

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from pipeline.transport.batch import Record

NEW_IMAGES = {"NEW_AND_OLD_IMAGES", "NEW_IMAGE"}
UNIT_BYTES = 4096
"""Bytes that a read capacity unit reads, strongly consistent."""
ON_DEMAND = 12_000
"""Read units a second that any on-demand table takes from its first moment on, of which a share is taken."""
PRICE = 0.125
"""Dollars for a million on-demand read units in us-east-1, since November 2024; other Regions take up to twice that."""
EXPORT_PRICE = 0.10
"""Dollars for a gigabyte of an export in us-east-1."""
EXPORT_BYTES = 40e6
"""Bytes of an export that are read a second, about; AWS takes its time before."""
SEGMENT_BYTES = 1 << 30
"""Bytes of a table above which another segment is worth while."""
SEGMENT_RATE = 2.5e6
"""Bytes a second that a segment reads at most, about: what it may hold, over the time for which a page waits."""
PAGE_ITEMS = 4_000
"""Items of a page at most: a megabyte of tiny ones would be 75,000 rows, 46 MB."""
SEGMENTS = 16
"""Segments of a table at most, when nothing else is said: each is one Scan at a time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What AWS says of a table."""

    table: str
    view: str
    """StreamViewType; '' when it has no stream."""
    arn: str
    keys: tuple[str, ...]
    """Names of the key attributes."""
    items: int
    """About: AWS counts every six hours or so, as with the bytes."""
    size: int
    """Bytes."""
    units: int
    """Read units a second that it has: provisioned, or set as the most for on demand, or what on demand has at least."""
    on_demand: bool

    def refusal(self) -> str:
        """Return why no snapshot of it can be joined with its stream, or ''."""
        if self.view in NEW_IMAGES:
            return ""
        if not self.view:
            return f"the table {self.table} has no stream: what changes while it is scanned would be lost"
        return (
            f"the stream of the table {self.table} is {self.view}: it does not say what an item becomes, so a row that the "
            "scan has read could neither be kept nor dropped"
        )


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a snapshot will take."""

    table: str
    rows: int
    size: int
    units: int
    """Read capacity units, of 4 KiB strongly consistent each."""
    seconds: float
    dollars: float
    """On demand; provisioned capacity is paid for already."""

    def __str__(self) -> str:
        takes = timedelta(seconds=math.ceil(self.seconds))
        cost = f"about ${self.dollars:,.2f}" if self.dollars else "no cost beyond the provisioned capacity"
        return f"{self.table}: about {self.rows:,} items, {self.size / 1e9:,.3f} GB, {self.units:,} read units, {takes}, {cost}"


def forecast(facts: Facts, rate: float, segments: int, price: float = PRICE) -> Forecast:
    """Return what a scan of the table takes, at so many units a second at most and in so many segments."""
    units = max(1, math.ceil(facts.size / UNIT_BYTES))
    seconds = max(units / rate, facts.size / (segments * SEGMENT_RATE))
    dollars = units * price / 1e6 if facts.on_demand else 0.0
    return Forecast(facts.table, facts.items, facts.size, units, seconds, dollars)


def export_forecast(facts: Facts, price: float = EXPORT_PRICE) -> Forecast:
    """Return what a snapshot from an export takes: no read units."""
    return Forecast(facts.table, facts.items, facts.size, 0, facts.size / EXPORT_BYTES, facts.size / 1e9 * price)


def segments_for(size: int) -> int:
    """Return into how many segments a table of so many bytes is parted."""
    return min(SEGMENTS, 1 + size // SEGMENT_BYTES)


@dataclass(frozen=True, slots=True)
class ScanPage:
    """One answer of Scan, as rows for the ingest topic, and where the segment is after it."""

    cut: Cut
    segment: Segment
    units: float


class Scanner:
    """Scans tables. Raises HeadwaterErrors that name the table."""

    def __init__(self, region: str | None, threads: int) -> None:
        self._region, self._threads = region, threads

    @cached_property
    def _client(self) -> DynamoDBClient:
        found: DynamoDBClient = client("dynamodb", self._region, self._threads)
        found.meta.events.register("before-parse.dynamodb.Scan", take_body)
        return found

    def facts(self, table: str) -> Facts:
        """Return what AWS says of a table."""
        try:
            found = self._client.describe_table(TableName=table)["Table"]
        except ERRORS as error:
            raise explained_aws(error, f"the table {table}") from error
        provisioned = found.get("ProvisionedThroughput", {}).get("ReadCapacityUnits", 0)
        most = found.get("OnDemandThroughput", {}).get("MaxReadRequestUnits", -1)
        stream = found.get("StreamSpecification", {})
        return Facts(
            table,
            stream.get("StreamViewType", "") if stream.get("StreamEnabled") else "",
            found.get("TableArn", ""),
            tuple(key["AttributeName"] for key in found["KeySchema"]),
            found.get("ItemCount", 0),
            found.get("TableSizeBytes", 0),
            provisioned or (most if most > 0 else ON_DEMAND),
            not provisioned,
        )

    def page(self, snapshot: Snapshot, number: int, at: Segment, keys: tuple[str, ...], now: float) -> ScanPage:
        """Scan one page of a segment, strongly consistent, from where it is; `now` is the rows' time."""
        start: dict[str, Any] = {} if at.after is None else {"ExclusiveStartKey": _as_boto_has_it(at.after)}
        what = f"the table {snapshot.table} (segment {number})"
        try:
            answer = self._client.scan(
                TableName=snapshot.table,
                Segment=number,
                TotalSegments=snapshot.segments,
                ConsistentRead=True,
                Limit=PAGE_ITEMS,
                ReturnConsumedCapacity="TOTAL",
                **start,
            )
        except ERRORS as error:
            raise explained_aws(error, what) from error
        body = taken_body(answer, what)
        try:
            return rows_of(body, snapshot, at, keys, self._client.meta.region_name, now)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TransientError(f"{what}: the answer of Scan cannot be read: {error}") from error


def rows_of(body: bytes, snapshot: Snapshot, at: Segment, keys: tuple[str, ...], region: str, now: float) -> ScanPage:
    """Cut an answer of Scan into rows; `at` is where its segment was before. Pure."""
    found = _decode(body)
    records = PageRows(snapshot, keys, region, now).of(found.items)
    units, after = found.consumed.units, found.last_key
    segment = Segment(after, at.rows + len(records), at.units + units, after is None)
    return ScanPage(Cut(records, [], None, None), segment, units)


class PageRows:
    """Makes the rows of one page. Pure."""

    def __init__(self, snapshot: Snapshot, keys: tuple[str, ...], region: str, now: float) -> None:
        self._snapshot, self._keys = snapshot, keys
        self._head = row_head(snapshot.table, region, now)

    def of(self, items: Iterable[msgspec.Raw]) -> list[Record]:
        """Return rows for the ingest topic; raise FatalError when an item has no key."""
        return [self._row(item) for item in items]

    def _row(self, item: msgspec.Raw) -> Record:
        attributes = _decode_item(item)
        try:
            key = canonical({name: _decode_value(attributes[name]) for name in self._keys})
        except KeyError as error:
            raise FatalError(f"an item of the table {self._snapshot.table} has no key attribute {error}") from error
        return {"key": key, "value": row(self._head, self._snapshot.table, self._snapshot.id, key, memoryview(item))}


def _as_boto_has_it(key: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Return a key with its binary values as bytes: boto3 takes no base64."""
    return {
        name: {kind: base64.b64decode(text) if kind == "B" else text for kind, text in value.items()}
        for name, value in key.items()
    }


class _Consumed(msgspec.Struct):
    units: float = msgspec.field(name="CapacityUnits", default=0.0)


class _Answer(msgspec.Struct):
    items: list[msgspec.Raw] = msgspec.field(name="Items", default_factory=list)
    last_key: dict[str, dict[str, str]] | None = msgspec.field(name="LastEvaluatedKey", default=None)
    consumed: _Consumed = msgspec.field(name="ConsumedCapacity", default_factory=_Consumed)


_decode = msgspec.json.Decoder(_Answer).decode
_decode_item = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_value = msgspec.json.Decoder(dict[str, str]).decode
