"""Reading a partition of a changelog up to an end, outside the consumer group, committed records only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, Message, TopicPartition
from faust.types import TP

from pipeline.errors import FatalError
from pipeline.transport import clients

FETCH = 5_000
"""Records in one application at most: the write to RocksDB holds the GIL."""
GONE = KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001 - how the offset policy `error` reports it
CHANGELOG_STUCK_S = 60.0
"""Seconds without a record after which a recovery that has not arrived gives up."""


def read_changelog(
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
    consumer = clients.consumer(  # the group is never joined and never committed
        conf, f"{tp.topic}.recovery", enable_partition_eof=True, fetch_wait_max_ms=20
    )
    try:
        consumer.assign([TopicPartition(tp.topic, tp.partition, start)])
        at, heard = start, time.monotonic()
        while at < end:
            messages = consumer.consume(most, 0.05)
            records = [message for message in messages if message.error() is None]
            gone = [one for one in messages if (error := one.error()) is not None and error.code() == GONE]
            if gone:
                raise FatalError(
                    f"{tp.topic}[{tp.partition}] no longer has the offset {gone[0].offset()}: records of it were deleted, or "
                    "it was recreated",
                    hint="start the worker again",
                )
            if messages:
                heard, at = time.monotonic(), max(at, position(messages[-1]))
            if records and not apply(records):
                return
            if time.monotonic() - heard > CHANGELOG_STUCK_S:
                raise FatalError(
                    f"recovery of {tp.topic}[{tp.partition}] is stuck at offset {at} of {end} for {CHANGELOG_STUCK_S:.0f} s: "
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
