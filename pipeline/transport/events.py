"""Single events: records of a topic that is not batch-native, handed to Faust's channels many at once.

It does what Faust's conductor does for a message, without a lock, a task and a turn of the event loop for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from confluent_kafka import Message
from faust.exceptions import KeyDecodeError, ValueDecodeError
from faust.types import TP, AppT, ConsumerMessage

from pipeline.transport.inside import in_stream

RUN = 250
"""Events of a partition that are handed over at once at most."""
EVENTS_AHEAD = 500
"""Events delivered and not acked at most, while an agent is at work."""


class SingleMessage(ConsumerMessage):
    """A record by itself, as Faust's events have it."""

    __slots__ = ("is_buffered", "origin", "started")

    origin: Message
    """The record as it was fetched."""
    started: bool
    """Whether an agent has it in hand; not while it waits in a queue or a buffer."""
    is_buffered: bool
    """Whether it waits in the buffer of `stream.take()`: nothing has been done for it."""


def message_of(tp: TP, record: Message, generation: int) -> SingleMessage:
    """Return a record as a message of its own."""
    kind, timestamp = record.timestamp()
    message = SingleMessage(
        tp.topic,
        tp.partition,
        cast("int", record.offset()),
        timestamp / 1000,
        kind,
        cast("list[tuple[str, bytes]]", record.headers() or []),
        record.key(),
        record.value(),
        None,
        None,
        None,
        tp,
        generation_id=generation,
    )
    message.origin, message.started, message.is_buffered = record, False, False
    return message


async def hand_over(app: AppT, messages: Sequence[SingleMessage]) -> None:
    """Put the events of one partition into the queues of all channels that read it.

    What a channel cannot decode goes to its own handler, as with Faust; by default that raises in the agent.
    """
    await app.flow_control.acquire()
    topics = cast("Any", app.topics)
    channels = list(topics._tp_index[messages[0].tp])  # noqa: SLF001 - Faust's conductor has no other name for it
    says = getattr(app.conf.Stream, "says_what_is_started", False)  # an app's own class does not
    for message in messages:
        message.refcount, message.started = len(channels), not says
    made: dict[Any, list[Any]] = {}
    for channel in channels:
        if (events := made.get(channel.schema)) is None:
            events = made[channel.schema] = [await _decoded(channel, message) for message in messages]
        put = channel.queue.force_put_nowait
        for message, event in zip(messages, events, strict=True):
            if isinstance(event, Exception):
                message.ack(app.consumer)
                await _refuse(channel, event, message)
            else:
                put(event)


async def _decoded(channel: Any, message: ConsumerMessage) -> Any:
    """Return the event, or why there is none."""
    try:
        return await channel.decode(message, propagate=True)
    except (KeyDecodeError, ValueDecodeError) as error:
        return error


async def _refuse(channel: Any, error: Exception, message: ConsumerMessage) -> None:
    token = in_stream.set(True)  # what a handler sends belongs to the slice
    try:
        if isinstance(error, KeyDecodeError):
            await channel.on_key_decode_error(error, message)
        else:
            await channel.on_value_decode_error(error, message)
    finally:
        in_stream.reset(token)
