"""Changes that are known to be lost."""

from __future__ import annotations

from typing import Literal

import msgspec

Cause = Literal["trimmed", "vanished", "missed", "new stream", "retention"]
"""Trimmed: older than the stream keeps it. Vanished: the shard is gone. Missed: it came and went while nobody read.
New stream: the table's stream was off; what changed meanwhile was never recorded.
Retention: Kafka deleted records of a topic before an agent read them."""


class Gap(msgspec.Struct, frozen=True, omit_defaults=True):
    """Changes that are known to be lost, between two sequence numbers of a shard or two offsets of a topic, and why."""

    table: str
    """'' for a gap of a topic, which may hold changes of several."""
    stream: str
    shard: str
    """'' for the whole table, between its former stream and this one."""
    after: str | None
    """The last change before the gap; None: from the shard's beginning."""
    cause: Cause
    before: str | None = None
    """The first change after it; None: not known, or to the shard's end."""
    at: float = 0.0
    """When it was noticed, in seconds since the epoch."""
    topic: str = ""
    """With the cause `retention`: the topic whose records are gone before they were read; else ''."""
    partition: int = -1
    first: int = -1
    """Offset of the first record that is gone."""
    last: int = -1
    """Offset of the last one."""
    count: int = 0
    """Offsets from the first to the last: records at most, since ends of transactions take offsets, too."""
    log: str = ""
    """Which log the offsets are of: cluster and topic ID (see pipeline/transport/logs.py)."""
    group: str = ""
    """The consumer group that has not read them."""
    until: float = 0.0
    """The time of the first record behind the gap, in seconds since the epoch; 0: not known."""
