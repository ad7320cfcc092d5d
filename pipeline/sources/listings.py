"""What a source believes of what AWS lists: which shards, and which streams are gone. One answer proves nothing.

A listing may be late, and may leave out what it had before. So what is missing once is kept, and what is missing `SAID` times
in a row is gone. On the event loop; asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.sources.shard_positions import KnownPositions, ShardOf
from pipeline.sources.shards import Shard
from pipeline.sources.snapshots.tips import is_reached

DRAINED = 2
"""Listings in a row in which all shards of a switched-off stream are read: then the table's next stream is begun."""
SAID = 2
"""Answers in a row that say that a shard, a stream or a table is not there."""


@dataclass(slots=True)
class Listing:
    """The shards of one stream, as they are believed to be."""

    table: str
    shards: Sequence[Shard] = field(default_factory=list)
    absent: Mapping[str, int] = field(default_factory=dict)
    """Shards that are known of and not listed, and by how many listings in a row."""

    def is_absent(self, shard_id: str) -> bool:
        """Say whether it is certain that AWS does not list a shard any more."""
        return self.absent.get(shard_id, 0) >= SAID

    @property
    def late(self) -> set[str]:
        """Shards that are not listed, and may be soon."""
        return {shard_id for shard_id, times in self.absent.items() if times < SAID}


class Listings:
    """The listings of all streams of a source. `look_again` asks for another look soon."""

    def __init__(self, known: KnownPositions, look_again: Callable[[], None]) -> None:
        self.of: dict[str, Listing] = {}
        """By stream."""
        self._known, self._look_again = known, look_again
        self._gone: dict[str, int] = {}
        """Streams that AWS does not know, and how many answers in a row have said so."""
        self._drained: dict[str, int] = {}
        """Streams of which all is read, and how many listings in a row have said so: a last shard may be listed late."""
        self.asked: set[str] = set()
        """Shards and streams for which another look was asked for already: once each."""

    def streams_of(self, table: str) -> set[str]:
        """Return the streams of a table that are known, or were listed."""
        return self._known.streams_of(table) | {arn for arn, one in self.of.items() if one.table == table}

    def take(self, table: str, arn: str, found: Sequence[Shard], read: set[str]) -> None:
        """Take an answer in; `read`: the shards of the stream that are being read."""
        self._gone.pop(arn, None)
        self.of[arn] = self._merged(table, arn, found, read)
        self._count_drained(arn)

    def take_vanished(self, table: str, arn: str) -> list[ShardOf]:
        """Take note that AWS does not know a stream; return the places to forget, when all of it was read.

        Switched off more than a day ago, or its table deleted. What was not read to its end there is a gap: so the readers of
        all shards that are known, begun or not, see for themselves that they are gone.
        """
        self._gone[arn] = self._gone.get(arn, 0) + 1
        if self._gone[arn] < SAID:
            self._look_again()
            return []
        places, shards = self._known.of(arn), self._last_known(arn)
        if {shard.shard_id for shard in shards} <= places.keys() and all(place.finished for place in places.values()):
            self.of.pop(arn, None)
            self._drained[arn] = DRAINED
            return [ShardOf(table, arn, shard_id) for shard_id in ("", *places)]
        self.of[arn] = Listing(table, shards)
        self._count_drained(arn)
        return []

    def _count_drained(self, arn: str) -> None:
        places = self._known.of(arn)
        unread = {shard.shard_id for shard in self.of[arn].shards} - {s for s, p in places.items() if p.finished}
        left = unread or not all(place.finished for place in places.values())
        self._drained[arn] = 0 if left else self._drained.get(arn, 0) + 1
        if self._drained[arn] == 1:
            self._look_again()

    def _merged(self, table: str, arn: str, found: Sequence[Shard], read: set[str]) -> Listing:
        """Return a listing with what only this one lacks, and what it lacks of all that is known of."""
        former, places = self.of.get(arn, Listing(table)), self._known.of(arn)
        listed, before = {shard.shard_id for shard in found}, {shard.shard_id: shard for shard in former.shards}
        parents = {parent for shard in found if shard.shard_id not in places for parent in shard.parents}
        unlisted = {*parents, *before, *places, *read} - listed
        absent = {shard_id: former.absent.get(shard_id, 0) + 1 for shard_id in unlisted}
        if any(absent.get(parent, SAID) < SAID for parent in parents - places.keys()):
            self._look_again()  # a child waits until it is certain that its parent is gone
        kept = [shard for shard_id, shard in before.items() if absent.get(shard_id, SAID) < SAID]
        return Listing(table, [*found, *kept], absent)

    def _last_known(self, arn: str) -> Sequence[Shard]:
        """Return the shards of a stream that is gone: as it was last listed, or was begun if no shard of it ever was."""
        if arn in self.of:
            return self.of[arn].shards
        beginning = self._known.beginnings.get(arn)
        return [] if beginning is None or self._known.of(arn) else [Shard(root) for root in beginning.roots]

    def ask_once(self, keys: Iterable[str]) -> None:
        """Ask for another look for the sake of these, once each."""
        if new := set(keys) - self.asked:
            self.asked |= new
            self._look_again()

    def is_gone(self, shard: ShardOf) -> bool:
        """Say whether the listing has said often enough that a shard is not there."""
        listing = self.of.get(shard.arn)
        return self._gone.get(shard.arn, 0) >= SAID or (listing is not None and listing.is_absent(shard.shard_id))

    def waits(self, arn: str, table: str) -> bool:
        """Say whether an older stream of the table is not read to its end: its changes come first."""
        listed = {one for one, listing in self.of.items() if listing.table == table}
        older = {name for name in listed | self._known.begun(table) if name < arn}  # by their dates
        # At its start a worker may have listed the table before it knew of the older ones.
        self.ask_once(f"{one}/" for one in older - self.of.keys())
        return not all(map(self.is_drained, older))

    def is_drained(self, arn: str) -> bool:
        """Say whether a stream is read to its end, for certain."""
        return self._drained.get(arn, 0) >= DRAINED

    def captured(self) -> set[str]:
        """Return the tables of whose streams the newest has been begun, and the others are read to their ends.

        What an older one still delivers is from before a gap: it must not speak for items that changed within the gap.
        """
        listed = {listing.table for listing in self.of.values()}
        return {table for table in listed & self._known.tables() if self._is_on_newest(table)}

    def _is_on_newest(self, table: str) -> bool:
        *older, _ = sorted(self._known.streams_of(table))  # by their dates
        return all(map(self.is_drained, older))

    def has_read(self, table: str, since: float) -> bool:
        """Say whether all that the table's streams had at a time has been read and committed."""
        streams = [(arn, listing.shards) for arn, listing in self.of.items() if listing.table == table]
        return bool(streams) and all(
            # What is switched off and read to its end brings nothing more.
            self.is_drained(arn) or is_reached(shards, self._known.of(arn), since)
            for arn, shards in streams
        )
