"""Has a stream been read to its tip? Pure. A page of a snapshot waits for that (docs/decisions/0017).

AWS does not say it: a GetRecords answer of DynamoDB Streams has no `MillisBehindLatest`, can be empty although more
comes, and ends at about a megabyte. So a tip is an answer that is small, or the second empty one in a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from pipeline.sources.places import Place
from pipeline.sources.shards import Shard

SMALL, SMALL_BYTES = 100, 128 << 10
"""An answer with less than both was not cut off at AWS's limits of 1,000 records and a megabyte."""
CHILDLESS = 300.0
"""Seconds after which a shard that is read to its end, and of which no child is listed, has none."""


def is_tip(records: int, size: int, empty_before: int) -> bool:
    """Say whether an open shard's answer shows all that it has: records, their bytes, the empty answers in a row before."""
    return empty_before > 0 if records == 0 else records < SMALL and size < SMALL_BYTES


def is_reached(listed: Iterable[Shard], places: Mapping[str, Place], since: float) -> bool:
    """Say whether all that a stream had at a time has been read and committed.

    A shard that was open, and read to its tip, at that time or later has nothing from before, and no more has any child
    of it, which is younger. One that was finished earlier counts when a child is listed: then it depends on the child.
    """
    parents = {shard.shard_id: shard.parents for shard in listed}
    children: dict[str, list[str]] = defaultdict(list)
    for shard_id, of in parents.items():
        for parent in of:
            children[parent].append(shard_id)
    young = [shard_id for shard_id, place in places.items() if place.tip >= since]
    done = set(young)
    while young:
        new = [child for child in children[young.pop()] if child not in done]
        done.update(new)
        young += new

    def has_ended(shard_id: str) -> bool:
        place = places.get(shard_id)
        if place is None or not place.finished:
            return False
        return shard_id not in parents or bool(children[shard_id]) or place.at + CHILDLESS < since

    return bool(parents or places) and all(has_ended(shard_id) for shard_id in {*parents, *places} - done)
