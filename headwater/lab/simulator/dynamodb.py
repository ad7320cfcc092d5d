"""The calls of DynamoDB and DynamoDB Streams that a reader makes, answered from a world."""

from __future__ import annotations

import base64
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec

from headwater.lab.simulator.faults import ApiError, ServiceFaults
from headwater.lab.simulator.history import SimulatedShard, SimulatedStream
from headwater.lab.simulator.world import World, image

THROTTLED = "LimitExceededException"
READERS, WHILE = 2, 1.0
"""Readers that a shard takes, and the seconds for which one counts after its last call."""
MOST_RECORDS, MOST_BYTES = 1_000, 1_000_000
"""In a GetRecords answer."""
SCANNED, ITEM_BYTES = 25, 100
"""Items of an answer of Scan, and the bytes for which each counts."""
Request = dict[str, Any]
encode = msgspec.json.encode


class StreamIterator(msgspec.Struct, array_like=True):
    """What an iterator's text stands for."""

    arn: str
    shard_id: str
    at: int
    """The number of the shard's next record."""
    issued: float
    reader: int
    """Which GetShardIterator call it descends from."""


class DynamoDB:
    """Answers calls by their names, `DynamoDBStreams_20120810.GetRecords` and so on. Errors are ApiError."""

    def __init__(self, world: World, faults: ServiceFaults, *, page: int = 10, iterator_seconds: float = 900.0) -> None:
        self._world, self._faults, self._page, self._iterator_seconds = world, faults, page, iterator_seconds
        self._readers: dict[tuple[str, str], dict[int, float]] = {}
        """When each reader of a shard called last."""
        self._numbers = count()
        streams, tables = "DynamoDBStreams_20120810.", "DynamoDB_20120810."
        self.calls: dict[str, Callable[[Request], bytes]] = {
            f"{streams}DescribeStream": self._describe_stream,
            f"{streams}GetShardIterator": self._get_shard_iterator,
            f"{streams}GetRecords": self._get_records,
            f"{tables}DescribeTable": self._describe_table,
            f"{tables}ListTables": self._list_tables,
            f"{tables}Scan": self._scan,
        }

    # -- tables -------------------------------------------------------------------------------------------------------

    def _list_tables(self, request: Request) -> bytes:
        names = sorted(self._world.tables)
        after = request.get("ExclusiveStartTableName", "")
        page = [name for name in names if name > after][: min(self._page, request.get("Limit", 100))]
        more = {"LastEvaluatedTableName": page[-1]} if page and page[-1] != names[-1] else {}
        return encode({"TableNames": page, **more})

    def _describe_table(self, request: Request) -> bytes:
        name = request["TableName"]
        table = self._world.tables.get(name)
        if table is None:
            raise ApiError("ResourceNotFoundException", f"Requested resource not found: Table: {name} not found")
        on = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
        specification = {} if table.off else {"StreamSpecification": on}
        arn = table.stream.arn
        described = {
            "TableName": name,
            "TableStatus": "ACTIVE",
            "TableArn": arn.partition("/stream/")[0],
            "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
            "ItemCount": sum(table.exists),
            "TableSizeBytes": ITEM_BYTES * sum(table.exists),
            "LatestStreamArn": arn,
            "LatestStreamLabel": arn.rpartition("/")[2],
            **specification,
        }
        return encode({"Table": described})

    def _scan(self, request: Request) -> bytes:
        """Answer a page of a segment: every so-manieth item."""
        table, segment, segments = request["TableName"], request.get("Segment", 0), request.get("TotalSegments", 1)
        if table not in self._world.tables:
            raise ApiError("ResourceNotFoundException", f"Requested resource not found: Table: {table} not found")
        after = int(request.get("ExclusiveStartKey", {"id": {"S": "item--1"}})["id"]["S"].removeprefix("item-"))
        left = [
            (number, version)
            for number, version in self._world.items(table)
            if number > after and number % segments == segment
        ]
        page = left[:SCANNED]
        more = {"LastEvaluatedKey": {"id": {"S": f"item-{page[-1][0]}"}}} if len(left) > len(page) else {}
        consumed = {"TableName": table, "CapacityUnits": max(1.0, len(page) * ITEM_BYTES / 4096)}
        items = [image(f"item-{number}", version) for number, version in page]
        return encode({"Items": items, "Count": len(items), "ConsumedCapacity": consumed, **more})

    # -- streams ------------------------------------------------------------------------------------------------------

    def _describe_stream(self, request: Request) -> bytes:
        stream = self._stream(request["StreamArn"])
        shards = stream.listing()
        if wanted := request.get("ShardFilter"):
            shards = [shard for shard in shards if wanted["ShardId"] in shard.parents]
        elif self._faults.happens("stale"):
            shards = [shard for shard in shards if not shard.is_open] + shards[:1]
            shards = list({shard.shard_id: shard for shard in shards}.values())
        after = request.get("ExclusiveStartShardId", "")
        left = sorted((shard for shard in shards if shard.shard_id > after), key=lambda shard: shard.shard_id)
        page = left[: min(self._page, request.get("Limit", 100))]
        more = {"LastEvaluatedShardId": page[-1].shard_id} if len(left) > len(page) else {}
        described = {
            "StreamArn": stream.arn,
            "StreamLabel": stream.arn.rpartition("/")[2],
            "StreamStatus": "ENABLED" if stream.open else "DISABLED",
            "StreamViewType": "NEW_AND_OLD_IMAGES",
            "TableName": stream.arn.partition("table/")[2].partition("/")[0],
            "Shards": [_described(shard) for shard in page],
            **more,
        }
        return encode({"StreamDescription": described})

    def _stream(self, arn: str) -> SimulatedStream:
        stream = self._world.stream(arn)
        if stream is None:
            raise ApiError("ResourceNotFoundException", f"Requested resource not found: Stream: {arn} not found")
        return stream

    def _shard(self, arn: str, shard_id: str) -> SimulatedShard:
        shard = self._stream(arn).shards.get(shard_id)
        if shard is None:
            message = f"Requested resource not found: Shard does not exist: {shard_id}"
            raise ApiError("ResourceNotFoundException", message)
        return shard

    def _get_shard_iterator(self, request: Request) -> bytes:
        arn, shard_id = request["StreamArn"], request["ShardId"]
        shard = self._shard(arn, shard_id)
        at = _start(shard, request["ShardIteratorType"], request)
        iterator = StreamIterator(arn, shard_id, at, self._world.clock(), next(self._numbers))
        return encode({"ShardIterator": _text(iterator)})

    def _get_records(self, request: Request) -> bytes:
        iterator = msgspec.json.decode(base64.urlsafe_b64decode(request["ShardIterator"]), type=StreamIterator)
        place = (iterator.arn, iterator.shard_id)
        shard = self._shard(*place)
        self._stream(iterator.arn).read = True
        if self._world.clock() - iterator.issued > self._iterator_seconds or self._faults.happens("expire"):
            raise ApiError("ExpiredIteratorException", "Iterator expired")
        if iterator.at < shard.gone:
            message = "The operation attempted to read past the oldest stream record in a shard."
            raise ApiError("TrimmedDataAccessException", message)
        self._count_readers(place, iterator.reader)
        records = self._some(shard, iterator.at, request.get("Limit", MOST_RECORDS))
        at = iterator.at + len(records)
        # A closed shard that is read to its end says so at once, together with its last records.
        ended = not shard.is_open and at == shard.end
        following = StreamIterator(*place, at, self._world.clock(), iterator.reader)
        more = b"" if ended else b',"NextShardIterator":%s' % encode(_text(following))
        return b'{"Records":[%s]%s}' % (b",".join(records), more)

    def _count_readers(self, place: tuple[str, str], reader: int) -> None:
        now, readers = self._world.clock(), self._readers.setdefault(place, {})
        for gone in [one for one, at in readers.items() if now - at > WHILE]:
            del readers[gone]
        if reader not in readers and len(readers) >= READERS:
            raise ApiError(THROTTLED, "Too many readers of the shard at once")
        readers[reader] = now

    def _some(self, shard: SimulatedShard, at: int, limit: int) -> list[bytes]:
        few = self._faults.few(min(limit, MOST_RECORDS, shard.end - at))
        return some(shard, at, few, MOST_BYTES)


def some(shard: SimulatedShard, at: int, count: int, most_bytes: int) -> list[bytes]:
    """Return so many records of a shard at most, and one at least if there is any."""
    found: list[bytes] = []
    size = 0
    for record in shard.records[at - shard.gone : at - shard.gone + count]:
        size += len(record.body)
        if found and size > most_bytes:
            break
        found.append(record.body)
    return found


def _described(shard: SimulatedShard) -> dict[str, Any]:
    ending = {} if shard.last is None else {"EndingSequenceNumber": str(shard.last)}
    parent = {"ParentShardId": shard.parents[0]} if shard.parents else {}
    numbers = {"StartingSequenceNumber": str(shard.first), **ending}
    return {"ShardId": shard.shard_id, "SequenceNumberRange": numbers, **parent}


def _start(shard: SimulatedShard, kind: str, request: Request) -> int:
    if kind == "TRIM_HORIZON":
        return shard.gone
    if kind == "LATEST":
        return shard.end
    if kind in {"AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"}:
        sequence = int(request["SequenceNumber"]) + (kind == "AFTER_SEQUENCE_NUMBER")
        if shard.trimmed_before(sequence):
            message = "The operation attempted to read past the oldest stream record in a shard."
            raise ApiError("TrimmedDataAccessException", message)
        return shard.find(sequence)
    if kind == "AT_TIMESTAMP":
        wanted = float(request["Timestamp"])
        times = (msgspec.json.decode(r.body)["dynamodb"]["ApproximateCreationDateTime"] for r in shard.records)
        before = sum(1 for at in times if at < wanted)
        return shard.gone + before
    raise ApiError("ValidationException", f"ShardIteratorType {kind}")


def _text(iterator: StreamIterator) -> str:
    return base64.urlsafe_b64encode(encode(iterator)).decode()
