"""Has a stream been read to its tip? Pure. A page of a snapshot waits for that (docs/decisions/0017).

AWS does not say it: a GetRecords answer of DynamoDB Streams has no `MillisBehindLatest`, and can be short, or empty, although
more comes. So a record says that all before its own time has been read, and the second empty answer in a row that all has been.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from pipeline.sources.shard_positions import ShardPosition
from pipeline.sources.shards import Shard

CHILDLESS_S = 300.0
"""Seconds after which a shard that is read to its end, and of which no child is listed, has none."""


def tip_of(last: float | None, empty_before: int, asked: float) -> float:
    """Return the time up to which an open shard has been read by an answer, 0 when it does not say.

    `last` is the time of its last record, None for an empty answer; `empty_before` counts the empty answers in a row before it.
    """
    if last is not None:
        return last
    return asked if empty_before > 0 else 0.0


def is_reached(listed: Iterable[Shard], places: Mapping[str, ShardPosition], since: float) -> bool:
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
        return shard_id not in parents or bool(children[shard_id]) or place.at + CHILDLESS_S < since

    return bool(parents or places) and all(has_ended(shard_id) for shard_id in {*parents, *places} - done)
