"""Cut a GetRecords body into changes, without parsing what is only forwarded. Pure; bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from models.change import NONE, canonical
from models.dead_letter import Origin
from pipeline.errors import RejectedError
from pipeline.sources.base import Cut, Unreadable

if TYPE_CHECKING:
    from pipeline.transport.batch import Record


def too_large(size: int, most: int) -> RejectedError:
    """Return why a record is not written to the ingest topic."""
    return RejectedError(
        f"it is {size:,} bytes as a change; a record may have {most:,}",
        hint="kafka.max_message_bytes; headwater dlq retry",
    )


def refused_record(record: Record, error: Exception) -> Unreadable:
    """Return a record that the ingest topic does not take as what cannot be read, with its place if it says one."""
    value = bytes(record["value"])
    return Unreadable(value, error, record["key"], Origin("", sequence=_sequence(msgspec.Raw(value)) or ""))


class _Body(msgspec.Struct, gc=False):
    records: list[msgspec.Raw] = msgspec.field(name="Records", default_factory=list)
    next_iterator: str | None = msgspec.field(name="NextShardIterator", default=None)


class _Position(msgspec.Struct, gc=False):
    keys: msgspec.Raw = msgspec.field(name="Keys")
    sequence: str = msgspec.field(name="SequenceNumber")


class _Record(msgspec.Struct, gc=False):
    dynamodb: _Position
    identity: msgspec.Raw = msgspec.field(name="userIdentity", default=NONE)


class _Keys(msgspec.Struct, gc=False):
    keys: msgspec.Raw = msgspec.field(name="Keys")


class _Keyed(msgspec.Struct, gc=False):
    dynamodb: _Keys


class _Positions(msgspec.Struct, gc=False):
    records: list[_Record] = msgspec.field(name="Records", default_factory=list)


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_positions = msgspec.json.Decoder(_Positions).decode
_decode_keyed = msgspec.json.Decoder(_Keyed).decode
_decode_record = msgspec.json.Decoder(_Record).decode
_decode_keys = msgspec.json.Decoder(dict[str, dict[str, str]]).decode


def cut_answer(body: bytes, stream_arn: str) -> Cut:
    """Cut a body; a record that cannot be read comes back as unreadable, it never stops the others.

    Raises msgspec.DecodeError when the body itself is not what GetRecords answers.
    """
    answer = _decode_body(body)
    if not answer.records:
        return Cut([], [], None, answer.next_iterator)
    head = b'{"eventSourceARN":' + msgspec.json.encode(stream_arn) + b","
    try:
        return _cut_whole(body, answer, head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _cut_one_by_one(answer, head)


def _cut_whole(body: bytes, answer: _Body, head: bytes) -> Cut:
    """Cut a body in which every record can be read. Whatever is done here for each record is what ingest costs."""
    found = _decode_positions(body).records
    records = [
        {
            "key": item_key_of(bytes(one.dynamodb.keys)),
            "value": head + memoryview(_as_lambda_spells(raw) if one.identity else raw)[1:],
        }
        for one, raw in zip(found, answer.records, strict=True)
    ]
    first, last = found[0].dynamodb.sequence, found[-1].dynamodb.sequence
    return Cut(records, [], last, answer.next_iterator, first)


def _cut_one_by_one(answer: _Body, head: bytes) -> Cut:
    result = Cut([], [], None, answer.next_iterator)
    first = last = None
    for raw in answer.records:
        try:
            position = _decode_record(raw).dynamodb
            key = item_key_of(bytes(position.keys))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            sequence = _sequence(raw)
            origin = Origin("", sequence=sequence or "")
            result.unreadable.append(Unreadable(bytes(raw), error, key_in(bytes(raw)), origin))
            last = sequence or last
        else:
            result.records.append({"key": key, "value": head + memoryview(_as_lambda_spells(raw))[1:]})
            last = position.sequence
        first = first or last
    return result._replace(last=last, first=first)


@lru_cache(maxsize=65_536)
def item_key_of(keys: bytes) -> bytes:
    """Return the item key: the key attributes as canonical JSON, sorted by name."""
    return canonical(_decode_keys(keys))


def key_in(value: bytes) -> bytes | None:
    """Return the item key of what may be a record, None when it has none that can be read."""
    try:
        return item_key_of(bytes(_decode_keyed(value).dynamodb.keys))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_one(value: bytes, stream_arn: str) -> Record:
    """Read one record of a stream, as `cut` reads many; it may have its eventSourceARN already.

    Raises msgspec.DecodeError or UnicodeDecodeError when it cannot be read.
    """
    value = value.strip()
    position = _decode_record(value).dynamodb
    named = b'"eventSourceARN"' in value and "eventSourceARN" in msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    head = b"{" if named else b'{"eventSourceARN":' + msgspec.json.encode(stream_arn) + b","
    return {"key": item_key_of(bytes(position.keys)), "value": head + _as_lambda_spells(msgspec.Raw(value))[1:]}


def _as_lambda_spells(raw: msgspec.Raw) -> bytes:
    """Spell `userIdentity` as a Lambda event does: the API writes PrincipalId and Type with capitals. Rare: TTL deletes."""
    record = bytes(raw)
    if b'"PrincipalId"' not in record:
        return record
    decoded: dict[str, Any] = msgspec.json.decode(record)
    identity = decoded.get("userIdentity")
    if isinstance(identity, dict):
        decoded["userIdentity"] = {name[:1].lower() + name[1:]: value for name, value in identity.items()}
    return msgspec.json.encode(decoded)


def _sequence(raw: msgspec.Raw) -> str | None:
    """Find a sequence number even in a record that is otherwise unreadable, so that the position can pass it."""
    for value in _walk(raw):
        if isinstance(value, dict) and isinstance(value.get("SequenceNumber"), str):
            return str(value["SequenceNumber"])
    return None


def _walk(raw: msgspec.Raw) -> Iterator[Any]:
    try:
        decoded = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    yield decoded
    if isinstance(decoded, dict):
        yield decoded.get("dynamodb")
