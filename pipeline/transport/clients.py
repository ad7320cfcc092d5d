"""librdkafka's clients, each made in one way: what they say goes to one logger, and nothing reads by a reset policy.

An offset that the log does not have is a question to be answered (see `starts`), never a reason to begin somewhere else.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import Producer as RdProducer
from confluent_kafka.admin import AdminClient

log = logging.getLogger("headwater.kafka")
REPEATED_S = 30.0
"""Seconds in which the same words of librdkafka are said once: an outage has every client say them every second."""


class OnceInAWhile(logging.Filter):
    """Lets a message through that was not said lately; numbers, addresses and clients in it do not make it another one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._lock = clock, threading.Lock()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether it is to be logged."""
        now, words = self._clock(), re.sub(r"[^ :\[]*\d[^ :\]]*", "#", record.getMessage())
        with self._lock:
            fresh = now >= self._said.get(words, -REPEATED_S) + REPEATED_S
            if fresh:
                if len(self._said) > 1_000:
                    self._said.clear()
                self._said[words] = now
        return fresh


log.addFilter(OnceInAWhile())


TUNED: Mapping[str, Any] = {"linger.ms": 2, "batch.size": 1_000_000, "compression.type": "zstd"}
"""Of producers that write much: few large batches. What the properties of the cluster say comes first."""
ROOM_S = 0.05
"""Seconds that a full queue is given before it is tried again."""


def consumer(conf: Mapping[str, Any], group: str, *, logger: logging.Logger = log, **more: Any) -> RdConsumer:
    """Return a consumer of committed records that commits nothing by itself. Keyword arguments have `_` for `.`."""
    ours = {
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        **{name.replace("_", "."): value for name, value in more.items()},
    }
    return RdConsumer({**conf, **ours}, logger=logger)


def producer(conf: Mapping[str, Any], *, logger: logging.Logger = log) -> RdProducer:
    """Return an idempotent producer: each record once, in order, as long as it lives. For a few records of commands."""
    return RdProducer({**conf, "enable.idempotence": True}, logger=logger)


def transactional(conf: Mapping[str, Any], name: str, timeout: float, *, logger: logging.Logger = log) -> RdProducer:
    """Return a producer with this transactional ID; who had it before is fenced off, and what it left open is aborted.

    Keys go where Java clients put them. Blocks for `timeout` seconds at most; raises KafkaException.
    """
    found = RdProducer({**conf, "transactional.id": name, "partitioner": "murmur2_random"}, logger=logger)
    found.init_transactions(timeout)
    return found


def with_room(write: Callable[[], None], serve: Callable[[float], object]) -> None:
    """Write; as long as librdkafka's queue is full, serve its reports for a moment and try again. `serve` takes seconds."""
    while True:
        try:
            write()
        except BufferError:
            serve(ROOM_S)
        else:
            return


def admin(conf: Mapping[str, Any]) -> AdminClient:
    """Return a client for questions about topics and groups."""
    return AdminClient(dict(conf), logger=log)
