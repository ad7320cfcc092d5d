"""The events of a subscription as their bytes: botocore would take each record apart, which costs ten times as much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from botocore.eventstream import EventStreamBuffer, EventStreamMessage
from botocore.exceptions import ClientError

EVENT = "SubscribeToShardEvent"


class Connection:
    """What Kinesis sends over one connection. botocore reads its first message; then `payloads` gives all."""

    def __init__(self, raw: Any) -> None:
        self._raw, self._chunks, self._messages = raw, iter(raw.stream()), EventStreamBuffer()

    def stream(self) -> Iterator[bytes]:
        """Yield the bytes as they come."""
        for chunk in self._chunks:
            self._messages.add_data(chunk)
            yield chunk

    def payloads(self) -> Iterator[bytes]:
        """Yield the JSON of each event, from the first on.

        Raises ClientError for an error among them, and what botocore's buffer and the connection raise.
        """
        yield from self._read()
        for _ in self.stream():
            yield from self._read()

    def _read(self) -> Iterator[bytes]:
        for message in self._messages:
            headers: Any = message.headers
            if headers.get(":message-type") != "event":
                raise _error(message)
            if headers.get(":event-type") == EVENT:  # kinds that are not known yet are passed over
                yield message.payload

    def close(self) -> None:
        """Close the connection."""
        self._raw.close()


def take_stream(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Take the connection before botocore makes events of it: a handler of its event `before-parse`."""
    if response_dict["status_code"] < 300:
        response_dict["body"] = customized_response_dict["Connection"] = Connection(response_dict["body"])


def _error(message: EventStreamMessage) -> ClientError:
    headers: Any = message.headers
    code = headers.get(":exception-type") or headers.get(":error-code", "")
    try:
        said = str(msgspec.json.decode(message.payload)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        said = headers.get(":error-message", "")
    return ClientError({"Error": {"Code": code, "Message": said}}, "SubscribeToShard")
