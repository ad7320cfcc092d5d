"""What a source brings into a transaction, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from models.gap import Gap
from pipeline.sources.dynamodb.records import Cut
from pipeline.sources.shard_positions import ShardOf

NOTHING = Cut([], [], None, None)


@dataclass(frozen=True, slots=True)
class Reading:
    """One GetRecords answer or one page of a scan, and the place after it; or a place alone."""

    shard: ShardOf
    cut: Cut
    place: msgspec.Struct
    """What the shards topic says of the shard from then on."""
    gaps: tuple[Gap, ...] = ()
    """Changes that are lost before this reading."""
    marks: tuple[bytes, ...] = ()
    """Records for every partition of the ingest topic, in front of the cut."""
    credit: Callable[[], None] | None = None
    """Gives back what it was read on, on the event loop, when it is committed."""
