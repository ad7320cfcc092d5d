"""Bounds that hold everywhere."""

from __future__ import annotations

import gc

from confluent_kafka import KafkaError

MESSAGE_MAX = 16 << 20
"""Bytes of a record at most, where the settings say nothing: as JSON a change with both images can be many times the 400 kB
that it has in DynamoDB."""
HEADROOM = 1 << 20
"""Bytes that dead letters, retries and state may have more than a change: what is kept beside it."""

NEVER_TAKEN = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_MSG,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.POLICY_VIOLATION,
    KafkaError._INVALID_ARG,  # noqa: SLF001
}
"""What is said of a record for its content or its topic's name: it never changes, and says nothing of the others."""


def spare_the_collector() -> None:
    """Have what is loaded now never walked again by Python's collector, which would else walk it for every batch."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
