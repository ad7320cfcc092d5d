"""Reading a partition of a changelog up to an end, outside the consumer group, committed records only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaError, Message, TopicPartition
from faust.types import TP

from pipeline.errors import FatalError

FETCH = 5_000
"""Records in one application at most: the write to RocksDB holds the GIL."""
STUCK = 60.0
"""Seconds without a record after which a recovery that has not arrived gives up."""


def read(
    conf: Mapping[str, Any],
    tp: TP,
    start: int,
    end: int,
    apply: Callable[[list[Message]], bool],
    *,
    most: int = FETCH,
) -> None:
    """Hand the records from `start` to `end` to `apply`, `most` at a time, until it returns False.

    Blocks. Raises FatalError when nothing comes for a minute: a transaction before `end` is waited for until it is decided.
    """
    consumer = RdConsumer(
        {
            **conf,
            "group.id": f"{tp.topic}.recovery",  # never joined and never committed
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
        }
    )
    try:
        consumer.assign([TopicPartition(tp.topic, tp.partition, start)])
        at, heard = start, time.monotonic()
        while at < end:
            messages = consumer.consume(most, 0.05)
            records = [message for message in messages if message.error() is None]
            if messages:
                heard, at = time.monotonic(), max(at, position(messages[-1]))
            if records and not apply(records):
                return
            if time.monotonic() - heard > STUCK:
                raise FatalError(
                    f"recovery of {tp.topic}[{tp.partition}] stands at offset {at} of {end} for {STUCK:.0f} s: "
                    f"a transaction there is not decided, or the broker does not answer",
                    hint="headwater check",
                )
    finally:
        consumer.close()


def position(message: Message) -> int:
    """Return the next offset to read after this record or end-of-partition event; -1 after an error."""
    error, offset = message.error(), message.offset()
    if offset is None or (error is not None and error.code() != KafkaError._PARTITION_EOF):  # noqa: SLF001 - its name
        return -1
    return offset if error is not None else offset + 1
