"""The calls of Kinesis Data Streams that a reader makes, answered from a world whose tables deliver into streams.

A position whose record was trimmed is not an error: the iterator begins with what is left. So it is said of AWS; not verified.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from headwater.lab.simulator.dynamodb import some
from headwater.lab.simulator.faults import ApiError, ServiceFaults
from headwater.lab.simulator.history import SPACE, SimulatedShard, SimulatedStream
from headwater.lab.simulator.world import World

PREFIX = "Kinesis_20131202."
THROTTLED = "ProvisionedThroughputExceededException"
CREATED = 1_767_225_600
"""When the streams were made, in seconds since the epoch."""
CALLS = 5
"""GetRecords calls a second that a shard takes."""
MOST_RECORDS, MOST_BYTES = 10_000, 10 << 20
"""In a GetRecords answer."""
ITERATOR_SECONDS = 300.0
Request = dict[str, Any]
encode = msgspec.json.encode


class KinesisIterator(msgspec.Struct, array_like=True):
    """What an iterator's text stands for."""

    name: str
    shard_id: str
    at: int
    """The number of the shard's next record."""
    issued: float
    created: int
    """When its stream was made: an iterator does not outlive it."""


class RecordsPage(msgspec.Struct, array_like=True):
    """What the token of ListShards stands for."""

    name: str
    after: str


class Kinesis:
    """Answers calls by their names, `Kinesis_20131202.GetRecords` and so on. Errors are ApiError."""

    def __init__(
        self, world: World, faults: ServiceFaults, *, page: int = 10, iterator_seconds: float = ITERATOR_SECONDS
    ) -> None:
        self._world, self._faults, self._page = world, faults, page
        self._iterator_seconds = min(iterator_seconds, ITERATOR_SECONDS)
        self._called: dict[tuple[str, str], deque[float]] = {}
        """When a shard was asked for records."""
        self.created: dict[str, int] = {}
        """When a stream was made, where that is not `CREATED`."""
        self.given = 0
        """Records that readers got."""
        self.strategy = "USER_PARTITION_KEY"
        self.calls: dict[str, Callable[[Request], bytes]] = {
            f"{PREFIX}ListStreams": self._list_streams,
            f"{PREFIX}DescribeStreamSummary": self._describe_stream_summary,
            f"{PREFIX}ListShards": self._list_shards,
            f"{PREFIX}GetShardIterator": self._get_shard_iterator,
            f"{PREFIX}GetRecords": self._get_records,
        }

    # -- streams ------------------------------------------------------------------------------------------------------

    def _list_streams(self, request: Request) -> bytes:
        names = sorted(self._world.tables) if self._world.plan.kinesis else []
        after = request.get("NextToken") or request.get("ExclusiveStartStreamName", "")
        left = [name for name in names if name > after]
        page = left[: min(self._page, request.get("Limit", 100))]
        more = {"NextToken": page[-1]} if len(left) > len(page) else {}
        return encode({"StreamNames": page, "HasMoreStreams": bool(more), **more})

    def _describe_stream_summary(self, request: Request) -> bytes:
        name, stream = self.stream(request)
        summary = {
            "StreamName": name,
            "StreamARN": stream.arn,
            "StreamStatus": "ACTIVE",
            "RetentionPeriodHours": 24,
            "StreamCreationTimestamp": self._created(name),
            "EnhancedMonitoring": [],
            "OpenShardCount": len(stream.open),
            "RecordDistributionStrategy": self.strategy,
        }
        return encode({"StreamDescriptionSummary": summary})

    def stream(self, request: Request) -> tuple[str, SimulatedStream]:
        """Return the stream that a request names, and its name."""
        name = request.get("StreamName") or request.get("StreamARN", "").rpartition("/")[2]
        table = self._world.tables.get(name) if self._world.plan.kinesis else None
        if table is None:
            raise ApiError("ResourceNotFoundException", f"Stream {name} not found")
        return name, table.stream

    def children(self, name: str, shard: SimulatedShard) -> list[SimulatedShard]:
        """Return the shards that a closed one has become."""
        return [one for one in self._world.tables[name].stream.shards.values() if shard.shard_id in one.parents]

    def shard(self, request: Request, shard_id: str) -> tuple[str, SimulatedShard]:
        """Return a shard of the stream that a request names, and the stream's name."""
        name, stream = self.stream(request)
        shard = stream.shards.get(shard_id)
        if shard is None:
            raise ApiError("ResourceNotFoundException", f"Shard {shard_id} in stream {name} does not exist")
        return name, shard

    def _list_shards(self, request: Request) -> bytes:
        after = request.get("ExclusiveStartShardId", "")
        if token := request.get("NextToken"):
            page = _decode(token, RecordsPage)
            request, after = {"StreamName": page.name}, page.after
        name, stream = self.stream(request)
        shards = stream.listing()
        if self._faults.happens("stale"):
            shards = [shard for shard in shards if not shard.is_open or shard is shards[0]]
        left = sorted((shard for shard in shards if shard.shard_id > after), key=lambda shard: shard.shard_id)
        listed = left[: min(self._page, request.get("MaxResults", 1_000))]
        more = {"NextToken": _text(RecordsPage(name, listed[-1].shard_id))} if len(left) > len(listed) else {}
        return encode({"Shards": [_described(shard) for shard in listed], **more})

    # -- reading ------------------------------------------------------------------------------------------------------

    def _get_shard_iterator(self, request: Request) -> bytes:
        name, shard = self.shard(request, request["ShardId"])
        at = start(shard, request["ShardIteratorType"], request)
        return encode({"ShardIterator": self._iterator(name, shard, at)})

    def _iterator(self, name: str, shard: SimulatedShard, at: int) -> str:
        return _text(KinesisIterator(name, shard.shard_id, at, self._world.clock(), self._created(name)))

    def _created(self, name: str) -> int:
        return self.created.get(name, CREATED)

    def _get_records(self, request: Request) -> bytes:
        iterator = _decode(request["ShardIterator"], KinesisIterator)
        name, shard = self.shard({"StreamName": iterator.name}, iterator.shard_id)
        if iterator.created != self._created(name):
            raise ApiError("ResourceNotFoundException", f"Shard {shard.shard_id} in stream {name} does not exist")
        if self._world.clock() - iterator.issued > self._iterator_seconds or self._faults.happens("expire"):
            raise ApiError("ExpiredIteratorException", "Iterator expired")
        self._count_calls((name, shard.shard_id))
        at = max(iterator.at, shard.gone)
        few = self._faults.few(min(request.get("Limit", MOST_RECORDS), MOST_RECORDS, shard.end - at))
        records = some(shard, at, few, MOST_BYTES)
        at, self.given = at + len(records), self.given + len(records)
        behind = 0 if at == shard.end else 1_000
        # A closed shard that is read to its end says so at once, together with its last records.
        if not shard.is_open and at == shard.end:
            children = [child(one) for one in self.children(name, shard)]
            more = b'"NextShardIterator":null,"ChildShards":%s' % encode(children)
        else:
            more = b'"NextShardIterator":%s' % encode(self._iterator(name, shard, at))
        return b'{"Records":[%s],"MillisBehindLatest":%d,%s}' % (b",".join(records), behind, more)

    def _count_calls(self, place: tuple[str, str]) -> None:
        now, called = time.monotonic(), self._called.setdefault(place, deque(maxlen=CALLS))
        if len(called) == CALLS and now - called[0] < 1:
            raise ApiError(THROTTLED, "Rate exceeded: 5 calls a second and shard")
        called.append(now)


def _described(shard: SimulatedShard) -> dict[str, Any]:
    ending = {} if shard.last is None else {"EndingSequenceNumber": str(shard.last)}
    names = ("ParentShardId", "AdjacentParentShardId")
    return {
        "ShardId": shard.shard_id,
        "HashKeyRange": _range(shard),
        "SequenceNumberRange": {"StartingSequenceNumber": str(shard.first), **ending},
        **dict(zip(names, shard.parents, strict=False)),
    }


def child(shard: SimulatedShard) -> dict[str, Any]:
    """Return a shard as its parent's last answer names it."""
    return {"ShardId": shard.shard_id, "ParentShards": shard.parents, "HashKeyRange": _range(shard)}


def _range(shard: SimulatedShard) -> dict[str, str]:
    return {"StartingHashKey": str(shard.low), "EndingHashKey": str(min(shard.high, SPACE) - 1)}


def start(shard: SimulatedShard, kind: str, request: Request) -> int:
    """Return the number of the record that an iterator or a subscription begins with."""
    if kind == "TRIM_HORIZON":
        return shard.gone
    if kind == "LATEST":
        return shard.end
    if kind in {"AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"}:
        return shard.find(int(request["StartingSequenceNumber"]) + (kind == "AFTER_SEQUENCE_NUMBER"))
    if kind == "AT_TIMESTAMP":
        times = (msgspec.json.decode(record.body)["ApproximateArrivalTimestamp"] for record in shard.records)
        return shard.gone + sum(1 for at in times if at < float(request["Timestamp"]))
    raise ApiError("InvalidArgumentException", f"ShardIteratorType {kind}")


def _text(value: KinesisIterator | RecordsPage) -> str:
    return base64.urlsafe_b64encode(encode(value)).decode()


def _decode(text: str, kind: Any) -> Any:
    return msgspec.json.decode(base64.urlsafe_b64decode(text), type=kind)
