"""What the shards topic and the gaps topic hold. Pure.

The shards topic is compacted. A key is `stream ARN/shard ID`; the shard's position is its value. The key `stream ARN/`,
without a shard, holds how the stream was begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import msgspec

from pipeline.topics.names import FENCE_PARTITIONS
from pipeline.transport.partition import partition_of


class ShardPosition(msgspec.Struct, frozen=True):
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
class KnownPositions:
    """What the shards topic says: positions of shards and beginnings of streams."""

    places: dict[str, dict[str, ShardPosition]]
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

    def of(self, arn: str) -> dict[str, ShardPosition]:
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


_place = msgspec.json.Decoder(ShardPosition).decode
_beginning = msgspec.json.Decoder(Beginning).decode
