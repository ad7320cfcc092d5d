"""The lineage of one stream's shards: which may be read now, which are done with.

A shard that rolls over, is split or is merged closes, and its children continue where it ended. An item's changes are in
order within a shard and from parents to children, so a child may be read only after its parents were read to their
ends. This module decides that from two inputs and nothing else: what AWS lists, and the positions that were committed.

Three things about the listing are true on AWS and used here:

- it is late: the newest shards may be missing from it, and a child may appear well after its parent has closed;
- it is trimmed: the oldest shards leave it first, so a parent that is not in it was trimmed with its records;
- so it must be paged to its end. A page, or the answer for the children of one shard, is merged into the last whole
  listing; given alone, its shards would look as if their parents were gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as AWS lists it. DynamoDB names at most one parent, Kinesis two for a merge (parent and adjacent)."""

    shard_id: str
    parents: tuple[str, ...] = ()
    first: str | None = None
    """Its starting sequence number."""


@dataclass(frozen=True, slots=True)
class ReadUpTo:
    """How far a shard has been read: `after` this sequence number, or from TRIM_HORIZON when it is None.

    `finished` says that it was read to its end: its iterator became null, or AWS no longer knows the shard.
    """

    after: str | None = None
    finished: bool = False


UNREAD = ReadUpTo()
"""Where a shard without a position begins: at TRIM_HORIZON, whatever the stream's own start was."""


class Lineage:
    """The graph of one stream's shards at one moment. It never changes: build a new one from what is known then.

    `listed` is a whole listing; a shard that is in it twice counts once, as its last entry has it.
    `positions` holds every shard that was begun, finished ones included, by shard ID.
    `late` are parents that are not listed, and may be soon: one listing without them does not prove that they are gone.
    """

    def __init__(
        self, listed: Iterable[Shard], positions: Mapping[str, ReadUpTo], late: Container[str] = frozenset()
    ) -> None:
        self._listed = {shard.shard_id: shard for shard in listed}
        self._positions = dict(positions)
        self._late = late
        self._children: dict[str, list[str]] = defaultdict(list)
        for shard in self._listed.values():
            for parent in shard.parents:
                self._children[parent].append(shard.shard_id)

    def readable(self) -> dict[str, ReadUpTo]:
        """Return the shards that may be read now and where each continues, in the order of the listing.

        A shard may be read when it is not finished and none of its parents is waited for. One that was begun continues
        although the listing no longer has it: its iterator will tell whether it still exists.
        """
        known = dict.fromkeys([*self._listed, *self._positions])
        return {
            shard_id: self._positions.get(shard_id, UNREAD)
            for shard_id in known
            if not self._is_finished(shard_id) and not self.waits_for(shard_id)
        }

    def waits_for(self, shard_id: str) -> tuple[str, ...]:
        """Return the parents that must be read to their ends before this shard may begin.

        A parent that is gone, neither listed nor begun, was trimmed: it is not waited for, once that is certain. A shard
        that was begun does not ask for that again.
        """
        late = () if shard_id in self._positions else self._late
        shard = self._listed.get(shard_id, Shard(shard_id))
        return tuple(
            parent
            for parent in shard.parents
            if (parent in self._listed or parent in self._positions or parent in late) and not self._is_finished(parent)
        )

    def awaiting_children(self) -> tuple[str, ...]:
        """Return the finished shards of which no child is listed yet: look for their children now.

        A closed shard always gets children, except when its stream was disabled or deleted; so ask with a pause.
        """
        return tuple(s for s in self._listed if self._is_finished(s) and not self._children.get(s))

    def missed(self, shard_id: str) -> tuple[str, ...]:
        """Return the parents of which nothing is known.

        Those of a shard that came up later than the stream's first listing have come and gone while nobody read.
        """
        parents = self._listed.get(shard_id, Shard(shard_id)).parents
        return tuple(parent for parent in parents if parent not in self._listed and parent not in self._positions)

    def is_followed(self, shard_id: str) -> bool:
        """Say whether a parent of it was read: then all of its records are wanted."""
        return any(parent in self._positions for parent in self._listed.get(shard_id, Shard(shard_id)).parents)

    def first_of(self, shard_id: str) -> str | None:
        """Return the starting sequence number of a shard that is listed."""
        return self._listed[shard_id].first if shard_id in self._listed else None

    def forgettable(self) -> tuple[str, ...]:
        """Return the finished shards whose positions can be dropped without their being read again.

        AWS must have trimmed the shard: it is not listed although a child of it is, which proves that the listing is
        not merely late. And all its listed children must have been begun, so that none depends on the position.
        When several generations were trimmed while nothing looked, only the youngest has such a witness; the
        positions of the others stay, a few bytes each, rather than be dropped on a guess.
        """
        return tuple(s for s in self._positions if self._is_finished(s) and s not in self._listed and self._is_left(s))

    def _is_finished(self, shard_id: str) -> bool:
        return self._positions.get(shard_id, UNREAD).finished

    def _is_left(self, shard_id: str) -> bool:
        children = self._children.get(shard_id, [])
        return bool(children) and all(child in self._positions for child in children)


def ancestors(listed: Iterable[Shard], of: Iterable[str]) -> set[str]:
    """Return all listed parents of some shards, their parents, and so on."""
    parents = {shard.shard_id: shard.parents for shard in listed}
    found: set[str] = set()
    left = [parent for shard_id in of for parent in parents.get(shard_id, ())]
    while left:
        shard_id = left.pop()
        if shard_id in parents and shard_id not in found:
            found.add(shard_id)
            left += parents[shard_id]
    return found
