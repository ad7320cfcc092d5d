"""De-aggregate what the Kinesis Producer Library packs: many records of a producer in one record of the stream. Pure.

The format: four magic bytes, a protobuf message `AggregatedRecord`, the MD5 of that message. The message has three fields
that matter, so it is read here: aws-kinesis-agg 1.2.3 cannot be imported beside current packages (its generated module
asks for a top-level `config_pb2`, it needs `six` without saying so), and its protobuf would cost a Lambda 0.2 s at each start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

MAGIC = b"\xf3\x89\x9a\xc2"
DIGEST = 16
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""


class NotAggregatedError(ValueError):
    """The record begins like an aggregated one and is none: its checksum or its message is wrong."""


class Sub(NamedTuple):
    """One record out of an aggregated one."""

    partition_key: str
    data: bytes


def is_aggregated(data: bytes) -> bool:
    """Say whether the data begin like an aggregated record."""
    return data.startswith(MAGIC)


def deaggregate(data: bytes) -> list[Sub]:
    """Return the records in an aggregated one, in order; raise NotAggregatedError when it is damaged."""
    message, digest = data[len(MAGIC) : -DIGEST], data[-DIGEST:]
    if len(data) < len(MAGIC) + DIGEST or hashlib.md5(message, usedforsecurity=False).digest() != digest:
        raise NotAggregatedError("an aggregated record whose checksum does not match")
    try:
        keys = [value.decode() for number, value in _fields(message) if number == 1 and isinstance(value, bytes)]
        return [_sub(value, keys) for number, value in _fields(message) if number == 3 and isinstance(value, bytes)]
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise NotAggregatedError(f"an aggregated record that cannot be read: {error!r}") from error


def _sub(message: bytes, keys: list[str]) -> Sub:
    fields = dict(_fields(message))
    index, data = fields[1], fields[3]
    if not isinstance(index, int) or not isinstance(data, bytes):
        raise TypeError("a field of a record is of another type")
    return Sub(keys[index], data)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the numbers and values of a message's fields."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == BYTES:
            size, at = _varint(message, at)
        else:
            size = {FIXED64: 8, FIXED32: 4}[wire]
        if at + size > len(message):
            raise IndexError("a field ends behind its message")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def aggregate(subs: list[Sub]) -> bytes:
    """Pack records as the library does."""
    keys = list(dict.fromkeys(sub.partition_key for sub in subs))
    message = b"".join(_field(1, key.encode()) for key in keys)
    for sub in subs:
        index = bytes([1 << 3 | VARINT]) + _number(keys.index(sub.partition_key))
        message += _field(3, index + _field(3, sub.data))
    return MAGIC + message + hashlib.md5(message, usedforsecurity=False).digest()


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | BYTES]) + _number(len(value)) + value


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
