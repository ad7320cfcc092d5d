"""What the shards topic and the gaps topic hold. Pure.

The shards topic is compacted. A key is `stream ARN/shard ID`; the shard's position is its value. The key `stream ARN/`,
without a shard, holds how the stream was begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import msgspec

from pipeline.topics.names import FENCE_PARTITIONS
from pipeline.transport.partition import partition_of

Cause = Literal["trimmed", "vanished", "missed", "new stream", "retention"]
"""Trimmed: older than the stream keeps it. Vanished: the shard is gone. Missed: it came and went while nobody read.
New stream: the table's stream was off; what changed meanwhile was never recorded.
Retention: Kafka deleted records of a topic before an agent read them."""


class Place(msgspec.Struct, frozen=True):
    """How far a shard has been read."""

    table: str
    after: str | None
    """Sequence number of the last record; None: nothing yet."""
    finished: bool = False
    at: float = 0.0
    """When that was read, in seconds since the epoch."""
    tip: float = 0.0
    """When the shard was last seen to hold nothing more; kept while a snapshot of the table runs."""


class Beginning(msgspec.Struct, frozen=True):
    """How a stream was begun, when it was first found."""

    table: str
    since: float | None = None
    """Changes before this time (seconds since the epoch) are not wanted; None: all that the stream holds."""
    follows: bool = False
    """It came after another stream of the table: then all of it is wanted, from the first record on."""
    roots: tuple[str, ...] = ()
    """The shards that were there: that their parents are unknown loses nothing that was wanted."""
    oldest: dict[str, str] = {}
    """For those that no parent of was there: the sequence number from which on they held everything then."""
    after: dict[str, str] = {}
    """For those that another reader has read: the sequence number of its last record. Their parents are not read."""


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


@dataclass(frozen=True, slots=True)
class ShardOf:
    """A shard of a stream, or the stream itself (shard ID ''), and where its place is kept."""

    table: str
    arn: str
    shard_id: str

    @property
    def key(self) -> bytes:
        """The key of its place."""
        return f"{self.arn}/{self.shard_id}".encode()

    @property
    def partition(self) -> int:
        """The partition of the shards topic that decides who reads it."""
        return _fence_partition(self.key)

    def __str__(self) -> str:
        return f"the shard {self.shard_id} of {self.table}"


@lru_cache(maxsize=65_536)
def _fence_partition(key: bytes) -> int:
    return partition_of(key, FENCE_PARTITIONS)


@dataclass(slots=True)
class Known:
    """What the shards topic says: positions of shards and beginnings of streams."""

    places: dict[str, dict[str, Place]]
    """By stream ARN and shard ID."""
    beginnings: dict[str, Beginning]
    """By stream ARN."""

    def take(self, key: bytes, value: bytes | None) -> None:
        """Take a record of the topic in."""
        arn, _, shard_id = key.decode().rpartition("/")
        if value is None:
            self.places.get(arn, {}).pop(shard_id, None)
            if not shard_id:
                self.beginnings.pop(arn, None)
        elif shard_id:
            self.places.setdefault(arn, {})[shard_id] = _place(value)
        else:
            self.beginnings[arn] = _beginning(value)

    def of(self, arn: str) -> dict[str, Place]:
        """Return the places of a stream's shards."""
        return dict(self.places.get(arn, {}))

    def streams_of(self, table: str) -> set[str]:
        """Return the ARNs of the streams of a table that were ever read and are not forgotten."""
        return self.begun(table) | {
            arn for arn, places in list(self.places.items()) if any(p.table == table for p in list(places.values()))
        }

    def begun(self, table: str) -> set[str]:
        """Return the ARNs of the streams of a table whose beginning is known."""
        return {arn for arn, beginning in list(self.beginnings.items()) if beginning.table == table}

    def tables(self) -> set[str]:
        """Return the tables that were ever read and are not forgotten."""
        return {beginning.table for beginning in list(self.beginnings.values())}


_place = msgspec.json.Decoder(Place).decode
_beginning = msgspec.json.Decoder(Beginning).decode
