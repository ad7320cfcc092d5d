"""A stream as AWS keeps it: shards that open, take records, roll over, split, merge, close and are trimmed. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

SPACE = 1 << 128
"""Hash keys are below this; the open shards part them."""
FIRST = 10**20
"""The first sequence number: AWS's have 21 digits and more, so that they sort as text too."""


@dataclass(frozen=True, slots=True)
class SimulatedRecord:
    """One record: its place in the stream, what it is, and its JSON as the API gives it."""

    sequence: int
    event_id: str
    body: bytes


@dataclass(slots=True)
class SimulatedShard:
    """A shard. Records are counted from its birth: `gone` of them were trimmed, the others are in `records`."""

    shard_id: str
    low: int
    high: int
    """It takes the hash keys from `low` up to and without `high`."""
    parents: tuple[str, ...]
    first: int
    """Its starting sequence number."""
    records: list[SimulatedRecord] = field(default_factory=list)
    gone: int = 0
    last: int | None = None
    """Its ending sequence number; None while it is open."""
    listed: bool = True
    """False while a listing, which is late, does not have it yet."""

    @property
    def end(self) -> int:
        """The number of records that it ever had."""
        return self.gone + len(self.records)

    @property
    def is_open(self) -> bool:
        """Whether it still takes records."""
        return self.last is None

    def find(self, sequence: int) -> int:
        """Return the number of the first record from this sequence number on; one that is trimmed counts as `gone`."""
        return self.gone + bisect_left(self.records, sequence, key=lambda record: record.sequence)

    def trimmed_before(self, sequence: int) -> bool:
        """Say whether records from this sequence number on are missing."""
        return self.gone > 0 and (not self.records or sequence < self.records[0].sequence)


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Records of a shard that are gone."""

    arn: str
    shard_id: str
    records: tuple[tuple[int, str], ...]
    """Sequence number and event ID of each."""


class SimulatedStream:
    """One stream, from its birth to its end."""

    def __init__(self, arn: str, shards: int = 1) -> None:
        self.arn = arn
        self.shards: dict[str, SimulatedShard] = {}
        """All that AWS still knows, in the order of their birth."""
        self.trimmed: list[Trimmed] = []
        self.open: list[SimulatedShard] = []
        """Those that take records, by hash key."""
        self.read = False
        """Whether somebody has read of it."""
        self._sequence, self._born = count(FIRST), count()
        for number in range(shards):
            self._add(number * SPACE // shards, (number + 1) * SPACE // shards, ())
        for shard in self.open:
            shard.listed = True

    def _add(self, low: int, high: int, parents: tuple[str, ...]) -> SimulatedShard:
        shard = SimulatedShard(
            f"shardId-{next(self._born):020d}", low, high, parents, next(self._sequence), listed=False
        )
        self.shards[shard.shard_id] = shard
        self.open = sorted([*self.open, shard], key=lambda one: one.low)
        return shard

    def taker(self, hash_key: int) -> SimulatedShard:
        """Return the shard that takes this hash key."""
        return next(shard for shard in self.open if shard.low <= hash_key < shard.high)

    def put(self, hash_key: int, event_id: str, body: Callable[[int], bytes]) -> SimulatedRecord:
        """Add a record to the shard that takes this hash key; `body` makes its JSON from its sequence number."""
        shard = self.taker(hash_key)
        sequence = next(self._sequence)
        record = SimulatedRecord(sequence, event_id, body(sequence))
        shard.records.append(record)
        return record

    def close(self, shard: SimulatedShard) -> None:
        """Close a shard; without children its hash keys have no place."""
        shard.last = next(self._sequence)
        self.open.remove(shard)

    def roll(self, shard: SimulatedShard) -> None:
        """Close a shard; one child continues it."""
        self.close(shard)
        self._add(shard.low, shard.high, (shard.shard_id,))

    def split(self, shard: SimulatedShard) -> None:
        """Close a shard; two children share its hash keys."""
        self.close(shard)
        middle = (shard.low + shard.high) // 2
        self._add(shard.low, middle, (shard.shard_id,))
        self._add(middle, shard.high, (shard.shard_id,))

    def merge(self, shard: SimulatedShard) -> bool:
        """Close a shard and its neighbour above; one child has both. False: there is no such neighbour."""
        other = next((one for one in self.open if one.low == shard.high), None)
        if other is None:
            return False
        self.close(shard)
        self.close(other)
        self._add(shard.low, other.high, (shard.shard_id, other.shard_id))
        return True

    def trim(self, shard: SimulatedShard, count: int) -> None:
        """Drop the oldest records of a shard; a closed one of which nothing is left is no longer known."""
        gone, shard.records = shard.records[:count], shard.records[count:]
        if gone:
            shard.gone += len(gone)
            records = tuple((record.sequence, record.event_id) for record in gone)
            self.trimmed.append(Trimmed(self.arn, shard.shard_id, records))
        if not shard.is_open and not shard.records:
            del self.shards[shard.shard_id]

    def show(self, shard: SimulatedShard) -> None:
        """List a shard from now on, and its parents: no listing has a child without them."""
        shard.listed = True
        for parent in shard.parents:
            if parent in self.shards:
                self.show(self.shards[parent])

    def listing(self) -> list[SimulatedShard]:
        """Return what a listing shows: without the newest, for a while."""
        return [shard for shard in self.shards.values() if shard.listed]
