"""Records of streams one by one, not as an answer of AWS: members of Lambda events, and what a dead letter holds. Pure.

What is read here is what the readers of streams would have made of it: the same codec, keys and event IDs.
"""

from __future__ import annotations

import base64
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from models.change import MalformedChangeError, decode, event_id, table_of
from models.dead_letter import Origin
from pipeline.settings.root import Settings
from pipeline.settings.sources import KinesisSettings
from pipeline.sources.base import Unreadable
from pipeline.sources.dynamodb.records import item_key_of, key_in, read_one
from pipeline.sources.kinesis.records import Put, changes, plain_json, read_put, table_name

if TYPE_CHECKING:
    from pipeline.transport.batch import Record

LAMBDA = "lambda"
"""The form of a value that is a member of a Lambda event."""


class Item(NamedTuple):
    """One member of an event: its sequence number, the changes in it, and where it was."""

    sequence: str
    place: str
    parts: list[Record | Unreadable]


class NoRecordError(ValueError):
    """A member of an event that is not a record of a stream."""


class UnreadableError(ValueError):
    """What a dead letter holds, or what it was corrected to, is not a record of its stream."""


def item(member: Any, settings: Settings) -> Item:
    """Read a member of a Lambda event. One that cannot be read comes back as unreadable: it never stops the others."""
    try:
        return _of_kinesis(member, settings) if _source(member) == "aws:kinesis" else _of_dynamodb(member)
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        said = f"the record has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        return _malformed(member, NoRecordError(f"not a record of a stream: {said}"))


def _source(member: Any) -> str:
    if not isinstance(member, dict):
        raise NoRecordError(f"it is a {type(member).__name__}")
    source = member.get("eventSource", "aws:dynamodb")
    if source not in {"aws:kinesis", "aws:dynamodb"}:
        raise NoRecordError(f"its eventSource is {source}")
    return str(source)


def _of_dynamodb(member: dict[str, Any]) -> Item:
    arn, body = member.get("eventSourceARN", ""), member.get("dynamodb")
    if not isinstance(body, dict):
        raise NoRecordError("it has no dynamodb")
    sequence, value = str(body.get("SequenceNumber", "")), msgspec.json.encode(member)
    part: Record | Unreadable
    try:
        part = {"key": item_key_of(msgspec.json.encode(body["Keys"])), "value": value}
    except (KeyError, msgspec.DecodeError) as error:
        part = Unreadable(value, error, None, Origin(arn, "", sequence, table_of(arn)))
    return Item(sequence, arn, [part])


def _of_kinesis(member: dict[str, Any], settings: Settings) -> Item:
    arn, found = plain_json(member["eventSourceARN"]), member["kinesis"]
    if not table_name(arn):
        raise NoRecordError(f"its eventSourceARN is {arn}")
    shard_id, _, sequence = member["eventID"].partition(":")
    data = base64.b64decode(found["data"], validate=True)
    arrived = float(found["approximateArrivalTimestamp"])
    put = Put(arn, shard_id, sequence or str(found["sequenceNumber"]), str(found["partitionKey"]), arrived, data)
    return Item(
        put.sequence,
        f"{arn}/{shard_id}",
        list(changes(put, codec_of(settings, put.stream), settings.kafka.max_message_bytes)),
    )


def _malformed(member: Any, error: Exception) -> Item:
    """Return what cannot be read, with all that is known of where it was."""
    known: dict[str, Any] = member if isinstance(member, dict) else {}
    arn = known.get("eventSourceARN")
    arn = plain_json(arn) if isinstance(arn, str) and table_name(arn) else arn if isinstance(arn, str) else ""
    shard_id, _, sequence = str(known.get("eventID", "")).rpartition(":")
    for name, field in (("kinesis", "sequenceNumber"), ("dynamodb", "SequenceNumber")):
        inner = known.get(name)
        if isinstance(inner, dict) and isinstance(inner.get(field), str):
            sequence = inner[field]
    shard_id = shard_id if table_name(arn) else ""
    origin = Origin(arn or LAMBDA, shard_id, sequence, table_name(arn) or table_of(arn), form=LAMBDA)
    value = msgspec.json.encode(member)
    return Item(sequence, f"{arn or LAMBDA}/{shard_id}", [Unreadable(value, error, key_in(value), origin)])


def codec_of(settings: Settings, stream: str) -> KinesisSettings:
    """Return the source of the settings that means the stream; without one, its records are what DynamoDB delivers."""
    kinesis = (source for source in settings.sources if isinstance(source, KinesisSettings))
    fitting = (source for source in kinesis if any(fnmatchcase(stream, name) for name in source.streams))
    return next(fitting, KinesisSettings(kind="kinesis", streams=(stream,)))


def read_again(settings: Settings, value: bytes, origin: Origin) -> list[Record]:
    """Read what could not be read, corrected or not, as if it came from its place; raise UnreadableError."""
    found = _parts(settings, value, origin)
    records: list[Record] = []
    for part in found:
        if isinstance(part, Unreadable):
            raise UnreadableError(f"it cannot be read as {_codec_name(settings, origin)}: {_words(part.error)}")
        try:
            decode(part["value"])
            event_id(part["value"])
        except (MalformedChangeError, RecursionError) as error:
            raise UnreadableError(f"it is read as {_codec_name(settings, origin)}, but {error}") from error
        records.append(part)
    return records


def _parts(settings: Settings, value: bytes, origin: Origin) -> list[Record | Unreadable]:
    if origin.form == LAMBDA:
        try:
            return item(msgspec.json.decode(value), settings).parts
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return [Unreadable(value, error)]
    stream = table_name(origin.stream)
    if not stream:
        try:
            return [read_one(value, origin.stream)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return [Unreadable(value, error)]
    how = codec_of(settings, stream)
    if how.codec != "dynamodb" and (origin.partition_key is None or not origin.sequence):
        raise UnreadableError(f"its partition key and sequence number are not known, which the codec {how.codec} needs")
    arn, arrived = plain_json(origin.stream), origin.arrived or 0.0
    put = Put(arn, origin.shard, origin.sequence, origin.partition_key or "", arrived, value)
    most = settings.kafka.max_message_bytes
    return [read_put(put, origin.part, how, most)] if origin.part else list(changes(put, how, most))


def _codec_name(settings: Settings, origin: Origin) -> str:
    if origin.form == LAMBDA:
        return "a record of a Lambda event"
    stream = table_name(origin.stream)
    return f"the codec {codec_of(settings, stream).codec} of {stream}" if stream else "a record of DynamoDB Streams"


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
