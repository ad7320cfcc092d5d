"""Faust's topic: what is sent goes straight into librdkafka's queue, without a task and two futures on the way."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import Any, cast

import faust
from faust.types import RecordMetadata
from faust.types.tuples import PendingMessage

from pipeline.transport.producer import Producer, Sent, completed


class Topic(faust.Topic):
    """A topic of an app on this transport. Its interface is Faust's."""

    async def _send_now(
        self,
        key: Any = None,
        value: Any = None,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: Any = None,
        schema: Any = None,
        key_serializer: Any = None,
        value_serializer: Any = None,
        callback: Any = None,
    ) -> Awaitable[RecordMetadata]:
        app = self.app
        producer = cast("Producer", app.producer)
        if not producer.started:
            await producer.maybe_start()
        if callback is not None or not producer.is_ready:
            return await super()._send_now(
                key, value, partition, timestamp, headers, schema, key_serializer, value_serializer, callback
            )
        open_headers = self.prepare_headers(headers) if headers else {}
        raw_key, open_headers = self.prepare_key(key, key_serializer, schema, open_headers)
        raw_value, open_headers = self.prepare_value(value, value_serializer, schema, open_headers)
        name = self.get_topic_name()
        pending = PendingMessage(
            self, raw_key, raw_value, partition, timestamp, open_headers, key_serializer, value_serializer, None
        )
        sensors = app.sensors
        state = sensors.on_send_initiated(producer, name, pending, len(raw_key or b""), len(raw_value or b""))
        try:
            sent = producer.write(name, raw_key, raw_value, partition, timestamp, open_headers)
        except BufferError:
            sent = cast("Sent", await producer.send(name, raw_key, raw_value, partition, timestamp, open_headers))
        sent.add_done_callback(partial(completed, sensors, producer, state))
        return sent
