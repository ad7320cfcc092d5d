"""Faust's stream without what costs most of an event: a turn of the event loop, a lock and four lists of offsets."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from time import monotonic
from typing import Any, TypeVar, cast

import faust
from faust.exceptions import Skip
from faust.streams import _current_event
from faust.types import ChannelT, EventT
from mode.utils.futures import maybe_async

from pipeline.errors import UsageError
from pipeline.transport.consumer import Consumer
from pipeline.transport.events import SingleMessage
from pipeline.transport.inside import in_stream

T = TypeVar("T")
TURN_S = 0.005
"""Seconds after which others get a turn of the event loop, however many events wait."""


class Stream(faust.Stream[T]):
    """What an agent iterates over. Its interface is Faust's; single events and batches alike.

    Guarantee: an event is acked when the next one is asked for, with `noack()` when the agent says so; also one that a filter
    has left out.
    """

    says_what_is_started = True
    """Tells the transport that `started` of a message means something."""
    _taken: list[SingleMessage] | None = None
    """What waits in the buffer of `take`; None: this stream has no such buffer."""

    def __aiter__(self) -> AsyncIterator[T]:
        """Return an iterator over the values."""
        if not isinstance(self.channel, ChannelT):  # a list, or whatever can be iterated over
            return super().__aiter__()
        found = self._values()
        self._active_agens.add(cast("Any", found))
        return found

    async def _values(self) -> AsyncIterator[T]:
        in_stream.set(True)
        # Sensors want one; a stream that was made at import has none.
        self.task_owner = self.task_owner or asyncio.current_task()
        self._finalized = True
        started_here = await self.maybe_start()
        app, channel, skipped = self.app, cast("Any", self.channel), self._skipped_value
        queue, wait = channel.queue, channel.__anext__
        waiting, errors = queue._queue, queue._errors  # noqa: SLF001 - as Faust's own streams do
        is_flowing, processors, join = app.flow_control.is_active, self._processors, self.join_strategy
        # The tasks of an agent take turns at events, where it has several.
        is_alone = self.concurrency_index is None and self.active_partitions is None
        turn, turn_at = TURN_S if is_alone else 0.0, 0.0
        try:
            while not self.should_stop:
                acks, state = self.enable_acks, None
                if errors:
                    raise errors.popleft()
                if monotonic() > turn_at:
                    await asyncio.sleep(0)
                    turn_at = monotonic() + turn
                found = queue.get_nowait() if waiting else await wait()
                event: EventT[T] | None
                if isinstance(found, EventT):
                    event, value, message = found, cast("Any", found.value), found.message
                    if message.generation_id != app.consumer_generation_id or not is_flowing():
                        continue  # of before a rebalance, or the worker stops: it is not acked, and comes again
                    if not message.tracked:
                        message.tracked = True
                        self._on_message_in(message.tp, message.offset, message)
                    if message.acked:
                        continue  # its slice is processed again
                    single = message if isinstance(message, SingleMessage) else None
                    if single is not None and self._taken is None:
                        single.started = True
                    state = self._on_stream_event_in(message.tp, message.offset, self, event)
                    _current_event.set(weakref.ref(event))
                else:
                    event, single, value = None, None, cast("Any", found)
                self.current_event = event
                try:
                    for processor in processors:
                        value = await maybe_async(processor(value))
                    if join is not None:
                        value = await self.on_merge(value)
                    if value is None and event is None:
                        continue
                except Skip:
                    value = skipped
                if single is not None and self._taken is not None and value is not skipped:
                    single.is_buffered = True
                    self._taken.append(single)
                try:
                    if value is not skipped:
                        self.events_total += 1
                        yield value
                finally:
                    self.current_event = None
                    if event is not None and (acks or value is skipped):
                        self._ack(event, state)
        except StopAsyncIteration:  # it would become a RuntimeError
            return
        finally:
            self._channel_stop_iteration(channel)
            if started_here:
                await self.stop()
                self.service_reset()

    def take(self, *args: Any, **options: Any) -> AsyncGenerator[Any, None]:
        """Yield lists of values: see Faust. So do the next three."""
        return self._in_hand(super().take(*args, **options))

    def take_events(self, *args: Any, **options: Any) -> AsyncGenerator[Any, None]:
        """Yield lists of events."""
        return self._in_hand(super().take_events(*args, **options))

    def take_with_timestamp(self, *args: Any, **options: Any) -> AsyncGenerator[Any, None]:
        """Yield lists of values with their times."""
        return self._in_hand(super().take_with_timestamp(*args, **options))

    def noack_take(self, *args: Any, **options: Any) -> AsyncGenerator[Any, None]:
        """Yield lists of events, to be acked by the agent."""
        return self._in_hand(super().noack_take(*args, **options))

    async def _in_hand(self, lists: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Say of what is in a list that the agent has it in hand now."""
        in_stream.set(True)
        taken: list[SingleMessage] = []
        self._taken = taken
        try:
            async with aclosing(lists) as found:
                async for values in found:
                    for message in taken:
                        message.started, message.is_buffered = True, False
                    taken.clear()
                    yield values
        finally:
            self._taken = None

    async def _passive_drainer(self, channel: ChannelT[Any], declare: bool = False) -> None:
        """Read for `take`, `through` and `group_by`; what is raised ends the worker, for nobody else would hear of it."""
        try:
            if declare:
                await channel.maybe_declare()
            self._passive_started.set()
            async for _ in self:
                pass
        except Exception as error:  # noqa: BLE001 - whatever it is
            await channel.throw(error)
            consumer = cast("Consumer", self.app.consumer)
            if consumer.slices.has_started:
                await consumer.on_task_error(error)
        finally:
            self._channel_stop_iteration(channel)
            self._passive = False

    def combine(self, *nodes: Any, **options: Any) -> Any:
        """Refuse: Faust has no working form of it. Its combined streams wait for a queue that nothing fills."""
        raise UsageError(
            "streams cannot be combined (`stream & stream`, `stream & table`): Faust itself never delivers anything to them",
            hint="an agent for each stream, and a table where they meet",
        )

    def _ack(self, event: EventT[T], state: Any) -> None:
        message = event.message
        is_last = event.ack()
        self._on_stream_event_out(message.tp, message.offset, self, event, state)
        if is_last:
            self._on_message_out(message.tp, message.offset, message)
