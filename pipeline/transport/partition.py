"""Which partition a key goes to. It needs nothing of Faust."""

from __future__ import annotations

from typing import cast

from aiokafka.partitioner import murmur2


def partition_of(key: bytes, count: int) -> int:
    """Return the partition of a key among `count`: murmur2, as Java clients do."""
    return cast("int", murmur2(key) & 0x7FFFFFFF) % count
