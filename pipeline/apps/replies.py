"""Answers to `agent.ask`, `map` and `join`: read outside the group, so that no rebalance and no slice delays them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from confluent_kafka import Message as RdMessage
from faust.agents.models import ReqRepResponse
from faust.agents.replies import BarrierState, ReplyConsumer, ReplyPromise
from faust.exceptions import ValueDecodeError
from faust.models import maybe_model
from faust.types import TP

from pipeline.transport.base import BaseTransport
from pipeline.transport.events import message_of
from pipeline.transport.follower import Follower

log = logging.getLogger(__name__)


class Replies(ReplyConsumer):
    """The answers that this process waits for.

    Each process has a topic of its own (`reply_to`), made when it first asks, and kept for `reply_expires`. A slice that is
    aborted answers nothing; the one that does its work again does, once.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._promises: dict[str, ReplyPromise] = {}
        self._followers: dict[str, Follower] = {}
        self._starting: dict[str, asyncio.Lock] = {}

    async def add(self, correlation_id: str, promise: ReplyPromise) -> None:
        """Wait for an answer."""
        if isinstance(promise, BarrierState):
            cast("Any", promise)._results._maxsize = 0  # noqa: SLF001 - else the thousandth answer is lost
        self._promises[correlation_id] = promise
        promise.add_done_callback(lambda _done: self._promises.pop(correlation_id, None))
        await self._start_fetcher(promise.reply_to)

    async def on_stop(self) -> None:
        """Stop to read."""
        await super().on_stop()
        for follower in self._followers.values():
            await asyncio.to_thread(follower.stop)

    async def _start_fetcher(self, topic_name: str) -> None:
        async with self._starting.setdefault(topic_name, asyncio.Lock()):
            if topic_name in self._followers:
                return
            topic = self._reply_topic(topic_name)
            await topic.maybe_declare()
            transport = cast("BaseTransport", self.app.transport)
            loop, schema = asyncio.get_running_loop(), topic.schema

            def apply(records: list[RdMessage]) -> None:
                loop.call_soon_threadsafe(self._answer, schema, records)

            self._followers[topic_name] = follower = Follower(transport.client_conf(), topic_name, apply)
            follower.start()

    def _answer(self, schema: Any, records: list[RdMessage]) -> None:
        for record in records:
            message = message_of(TP(cast("str", record.topic()), 0), record, 0)
            try:
                reply: ReqRepResponse = schema.loads_value(self.app, message)
                promise = self._promises.get(reply.correlation_id)
            except (ValueDecodeError, AttributeError):
                log.exception("An answer on %s at offset %s cannot be read:", record.topic(), record.offset())
                continue
            if promise is not None and not promise.done():  # else nobody waits any more
                promise.fulfill(reply.correlation_id, maybe_model(reply.value))
