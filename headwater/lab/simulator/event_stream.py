"""Messages of the content type application/vnd.amazon.eventstream. Pure.

A message is: its length and that of its headers, 4 bytes each; a checksum of these; headers; payload; a checksum of all.
"""

from __future__ import annotations

import struct
import zlib

CONTENT_TYPE = "application/vnd.amazon.eventstream"
TEXT = 7
"""The type of a header's value."""


def event(kind: str, payload: bytes) -> bytes:
    """Return an event: `kind` is its type, the payload is JSON."""
    return _message({":message-type": "event", ":event-type": kind, ":content-type": "application/json"}, payload)


def exception(kind: str, payload: bytes) -> bytes:
    """Return an exception, which ends a stream."""
    headers = {":message-type": "exception", ":exception-type": kind, ":content-type": "application/json"}
    return _message(headers, payload)


def _message(headers: dict[str, str], payload: bytes) -> bytes:
    head = b"".join(_header(name.encode(), value.encode()) for name, value in headers.items())
    prelude = struct.pack("!II", 12 + len(head) + len(payload) + 4, len(head))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack("!I", zlib.crc32(message))


def _header(name: bytes, value: bytes) -> bytes:
    return struct.pack("!B", len(name)) + name + struct.pack("!BH", TEXT, len(value)) + value
