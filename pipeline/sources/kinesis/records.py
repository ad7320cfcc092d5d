"""Turn records of a Kinesis stream into changes for the ingest topic. Pure; bytes in, bytes out.

Three codecs: `dynamodb` for what DynamoDB delivers into a stream, which is forwarded as it comes; `json` and `bytes` for
what applications put, which is wrapped so that it looks like a change. Aggregated records are taken apart before.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from models.change import OPS
from models.dead_letter import Origin
from pipeline.limits import MESSAGE_MAX
from pipeline.sources.base import Cut, Unreadable
from pipeline.sources.dynamodb.records import item_key_of, key_in, too_large
from pipeline.sources.kinesis.kpl import Sub, deaggregate, is_aggregated

if TYPE_CHECKING:
    from pipeline.transport.batch import Record

THROUGHPUT = 2 << 20
"""Bytes a second that a shard gives."""
CALLS = 5
"""GetRecords calls a second that a shard takes."""


class Codec(Protocol):
    """How the records of a stream are to be read: see the settings of the same names."""

    @property
    def codec(self) -> str:
        """`dynamodb`, `json` or `bytes`."""

    @property
    def event_id_field(self) -> str | None:
        """The field of a JSON object that is its event ID."""


class Put(NamedTuple):
    """One record of a Kinesis stream, and where it was."""

    arn: str
    """Of the stream."""
    shard_id: str
    sequence: str
    partition_key: str
    arrived: float
    """When Kinesis took it, in seconds since the epoch."""
    data: bytes

    @property
    def stream(self) -> str:
        """The stream's name."""
        return table_name(self.arn)

    def origin(self, part: str) -> Origin:
        """Return where it was, for a dead letter."""
        return Origin(self.arn, self.shard_id, self.sequence, self.stream, self.partition_key, self.arrived, part)


class _Record(msgspec.Struct, gc=False):
    data: bytes = msgspec.field(name="Data")
    partition_key: str = msgspec.field(name="PartitionKey")
    sequence: str = msgspec.field(name="SequenceNumber")
    arrived: float = msgspec.field(name="ApproximateArrivalTimestamp", default=0.0)


class _Body(msgspec.Struct, gc=False):
    records: list[_Record] = msgspec.field(name="Records", default_factory=list)
    next_iterator: str | None = msgspec.field(name="NextShardIterator", default=None)
    behind_ms: int = msgspec.field(name="MillisBehindLatest", default=0)


class _Event(msgspec.Struct, gc=False):
    records: list[_Record] = msgspec.field(name="Records", default_factory=list)
    reached: str | None = msgspec.field(name="ContinuationSequenceNumber", default=None)
    behind_ms: int = msgspec.field(name="MillisBehindLatest", default=0)
    children: list[msgspec.Raw] | None = msgspec.field(name="ChildShards", default=None)


class _Keys(msgspec.Struct, gc=False):
    keys: msgspec.Raw = msgspec.field(name="Keys")


class _Delivered(msgspec.Struct, gc=False):
    """What every change has that DynamoDB delivers into Kinesis."""

    event_id: str = msgspec.field(name="eventID")
    event_name: str = msgspec.field(name="eventName")
    table: str = msgspec.field(name="tableName")
    dynamodb: _Keys


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_delivered = msgspec.json.Decoder(_Delivered).decode


class Answer(NamedTuple):
    """Records of one shard as Kinesis gave them, by GetRecords or in an event of a subscription."""

    puts: list[Put]
    next_iterator: str | None
    """None at the shard's end."""
    behind: bool = False
    """There is more, although this answer may be empty."""
    wait: float = 0.0
    """Seconds in which Kinesis does not want to be asked about the shard again."""
    asked: float = 0.0
    """When it was asked for, and when it came, by time.monotonic()."""
    heard: float = 0.0


def read_record(body: bytes, stream_arn: str, shard_id: str) -> Answer:
    """Read a GetRecords body; raise msgspec.DecodeError when it is not what GetRecords answers."""
    answer = _decode_body(body)
    wait = max(1 / CALLS, len(body) * 3 / 4 / THROUGHPUT)  # three bytes are four in base64
    return Answer(_puts(answer.records, stream_arn, shard_id), answer.next_iterator, answer.behind_ms > 0, wait)


def read_event(payload: bytes, stream_arn: str, shard_id: str) -> tuple[Answer, str | None]:
    """Read an event of a subscription; return it as an answer, and the sequence number up to which it has read the shard.

    Raises msgspec.DecodeError when it is none.
    """
    event = _decode_event(payload)
    ended = bool(event.children)  # they are named in a shard's last event
    return Answer(_puts(event.records, stream_arn, shard_id), None if ended else "", event.behind_ms > 0), event.reached


def _puts(records: list[_Record], arn: str, shard_id: str) -> list[Put]:
    return [Put(arn, shard_id, r.sequence, r.partition_key, r.arrived, r.data) for r in records]


def cut_kinesis(answer: Answer, how: Codec, most: int = MESSAGE_MAX) -> Cut:
    """Cut an answer into changes; what cannot be read comes back as unreadable, it never stops the others.

    So does what makes a record of more than `most` bytes: JSON with types can be many times the JSON that was put.
    """
    result = Cut([], [], None, answer.next_iterator, wait=answer.wait, behind=answer.behind)
    for put in answer.puts:
        for part in changes(put, how, most):
            if isinstance(part, Unreadable):
                result.unreadable.append(part)
            else:
                result.records.append(part)
    puts = answer.puts
    return result._replace(first=puts[0].sequence, last=puts[-1].sequence) if puts else result


def changes(put: Put, how: Codec, most: int = MESSAGE_MAX) -> Iterator[Record | Unreadable]:
    """Yield the changes in a record: one, or all that a producer has packed into it."""
    if not is_aggregated(put.data):
        yield read_put(put, "", how, most)
        return
    try:
        subs = deaggregate(put.data)
    except ValueError as error:
        yield Unreadable(put.data, error, _key_of(put, how), put.origin(""))
        return
    for number, sub in enumerate(subs):
        yield read_put(_part_of(put, sub), f":{number}", how, most)


def _part_of(put: Put, sub: Sub) -> Put:
    return put._replace(partition_key=sub.partition_key, data=sub.data)


def read_put(put: Put, part: str, how: Codec, most: int = MESSAGE_MAX) -> Record | Unreadable:
    """Read one record, or one part of one that was taken apart."""
    try:
        record = READERS[how.codec](put, part, how)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        return Unreadable(put.data, error, _key_of(put, how), put.origin(part))
    if len(record["value"]) > most:
        return Unreadable(put.data, too_large(len(record["value"]), most), record["key"], put.origin(part))
    return record


def _key_of(put: Put, how: Codec) -> bytes | None:
    return key_in(put.data) if how.codec == "dynamodb" else item_key_of(msgspec.json.encode(_keys(put)))


def _keys(put: Put) -> dict[str, dict[str, str]]:
    return {"partition_key": {"S": put.partition_key}}


def table_name(arn: str) -> str:
    """Return a stream's name out of its ARN, whatever is behind it; '' when it is not one of Kinesis."""
    return arn.partition(":stream/")[2].partition("/")[0] if ":kinesis:" in arn else ""


def plain_json(arn: str) -> str:
    """Return the ARN that AWS knows: without the creation, and without a consumer."""
    before, stream, _ = arn.partition(":stream/")
    return f"{before}{stream}{table_name(arn)}"


# -- what DynamoDB delivers -------------------------------------------------------------------------------------------


def _delivered(put: Put, part: str, how: Codec) -> Record:
    found = _decode_delivered(put.data)
    if not found.event_id or not found.table or found.event_name not in OPS:
        raise ValueError("not a change of DynamoDB: eventID, tableName or eventName is missing or unknown")
    return {"key": item_key_of(bytes(found.dynamodb.keys)), "value": put.data}


# -- what applications put --------------------------------------------------------------------------------------------


class ExactNumber(str):
    """A number of JSON, in the digits that it came in."""

    __slots__ = ()


def _object(put: Put, part: str, how: Codec) -> Record:
    fields = _loads(put.data)
    if not isinstance(fields, dict):
        raise TypeError("not a JSON object: set codec = 'bytes' for what is not an object")
    return _wrapped(
        put, _event_id(put, part, fields, how.event_id_field), {n: typed_json(v) for n, v in fields.items()}
    )


def _bytes(put: Put, part: str, how: Codec) -> Record:
    return _wrapped(put, _place(put, part), {"data": {"B": base64.b64encode(put.data).decode()}})


def _wrapped(put: Put, event_id: str, image: dict[str, Any]) -> Record:
    keys = _keys(put)
    body = {
        "ApproximateCreationDateTime": round(put.arrived * 1000),
        "ApproximateCreationDateTimePrecision": "MILLISECOND",
        "Keys": keys,
        "NewImage": image,
        "SequenceNumber": put.sequence,
    }
    value = {
        "eventID": event_id,
        "eventName": "INSERT",
        "eventSource": "aws:kinesis",
        "eventSourceARN": put.arn,
        "tableName": put.stream,
        "dynamodb": body,
    }
    return {"key": item_key_of(msgspec.json.encode(keys)), "value": msgspec.json.encode(value)}


def _event_id(put: Put, part: str, fields: dict[str, Any], name: str | None) -> str:
    if name is None:
        return _place(put, part)
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"the field {name}, which is to be the event ID, is not text or a number, or is empty")
    return f"{put.stream}:{value}"  # streams may number their records alike


def _place(put: Put, part: str) -> str:
    return f"{put.stream}:{put.shard_id}:{put.sequence}{part}"


def typed_json(value: Any) -> dict[str, Any]:
    """Return a JSON value in DynamoDB's typed form; numbers are `Number`."""
    if value is None:
        return {"NULL": True}
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, str):
        return {"N" if isinstance(value, ExactNumber) else "S": str(value)}
    if isinstance(value, list):
        return {"L": [typed_json(one) for one in value]}
    return {"M": {name: typed_json(one) for name, one in value.items()}}


def _loads(data: bytes) -> Any:
    return json.loads(
        data.decode(),
        parse_int=ExactNumber,
        parse_float=ExactNumber,
        parse_constant=_no_number,
        object_pairs_hook=_no_name_twice,
    )


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice in an object: one value would be lost")
    return found


READERS: dict[str, Callable[[Put, str, Codec], Record]] = {"dynamodb": _delivered, "json": _object, "bytes": _bytes}
