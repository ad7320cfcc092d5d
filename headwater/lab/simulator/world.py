"""Tables whose items change and whose streams are reshaped: one history a seed, step by step, with the truth of it."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec

from headwater.lab.simulator.history import SimulatedShard, SimulatedStream
from pipeline.sources.kinesis.kpl import Sub, aggregate

REGION, ACCOUNT = "eu-west-1", "000000000000"
GUEST = "guest-"
LARGE = 300_000
"""Bytes of padding in a large item: both images of it come near a GetRecords answer's megabyte."""
GROWING = 2
"""Tables, the first ones, whose Kinesis streams grow."""
STRAY_CHANGES = 600
"""Changes of any item after which a stray comes at the latest."""
encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class WorldPlan:
    """What happens. Counts are of changes: the clock decides nothing but the times that records carry."""

    seed: int = 1
    tables: tuple[str, ...] = ("orders", "customers")
    items: int = 300
    """Items a table."""
    shards: int = 2
    """Open shards of each stream at its start."""
    most_shards: int = 8
    """Open shards of a stream at most."""
    reshape_every: int = 400
    """Changes between two reshapings, 0 for none."""
    late: int = 150
    """A new shard is listed at most so many changes after its birth."""
    kept: int = 20_000
    """A closed shard is trimmed so many changes after its end."""
    trim_every: int = 0
    """Changes between two sudden trimmings of what may not have been read, 0 for none."""
    renew_every: int = 0
    """Changes after which a table's stream is switched off, and on again with a new ARN; 0 for never."""
    guest_every: int = 0
    """Changes between two tables that come (`guest-1` and so on); each is deleted when the next but one comes. 0: none come."""
    off: int = 20
    """Changes of a table that nobody records while its stream is off."""
    large_every: int = 3_000
    """Changes between two large ones, 0 for none."""
    lag: int = 0
    """A change is in its stream at most so many changes after the item has it; with `renew_every` 0."""
    kinesis: bool = False
    """The tables deliver into Kinesis streams of their names, instead of streams of their own."""
    duplicates: float = 0.02
    """Of what is delivered into Kinesis, how much comes once more, under another sequence number."""
    reordered: float = 0.1
    """Of what is delivered into Kinesis, how much comes behind later changes of other items."""
    shuffled: float = 0.0
    """Of what is delivered into Kinesis, how much comes behind later changes of its own item."""
    grow_every: int = 0
    """Changes between two doublings of all open shards of a Kinesis stream, as on-demand streams grow; 0 for none."""
    aggregate: int = 1
    """Changes that one record of Kinesis holds, as the Kinesis Producer Library packs them; 1: one."""

    @classmethod
    def rough(cls, tables: tuple[str, ...], seed: int, rate: int, *, kinesis: bool = False) -> WorldPlan:
        """Return a plan in which everything happens every few seconds, at this rate of changes a second."""
        plan = cls(
            seed,
            tables,
            reshape_every=rate * 3 // 2,
            late=rate // 2,
            kept=30 * rate,
            trim_every=5 * rate,
            renew_every=23 * rate,
            guest_every=13 * rate,
            off=rate // 10,
        )
        if not kinesis:
            return plan
        # Kinesis keeps a day at least: what is trimmed unread is a matter of the tests.
        grows: dict[str, Any] = {"shards": 1, "most_shards": 64, "grow_every": rate * 3}
        return replace(
            plan, kinesis=True, shuffled=0.05, trim_every=0, renew_every=0, guest_every=0, kept=90 * rate, **grows
        )


@dataclass(slots=True)
class SimulatedTable:
    """A table, its streams from the oldest to the newest, and what is true of it."""

    name: str
    streams: list[SimulatedStream]
    versions: list[int]
    exists: list[bool]
    changes: dict[str, list[str]] = field(default_factory=dict)
    """Event IDs of each item's recorded changes, in order."""
    delivered: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """Event IDs of each item's changes as they came into its Kinesis stream, and when, in seconds since the epoch."""
    recorded: dict[str, int] = field(default_factory=dict)
    """After which change of the world the last one of each item comes into the stream."""
    unrecorded: int = 0
    """Changes that were made while the stream was off."""
    off: int = 0
    """Changes until the stream is on again; 0: it is on."""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def stream(self) -> SimulatedStream:
        """The newest stream."""
        return self.streams[-1]


class World:
    """All tables. `step` makes one change; nothing else happens between two steps."""

    def __init__(self, plan: WorldPlan, clock: Callable[[], float] = time.time) -> None:
        self.plan, self.clock = plan, clock
        self.tables = {name: self._table(name) for name in plan.tables}
        self.deleted: list[SimulatedTable] = []
        """Tables that are gone; what their streams have can be read until it is trimmed."""
        self.made = self.reshapes = self.come = 0
        self.widest = plan.shards
        """The most shards that a stream has had open."""
        self._dice = random.Random(plan.seed)  # noqa: S311 - a history that can be had again
        self._due: list[tuple[int, Callable[[], object]]] = []
        self._deliveries = {name: Delivery(self, table) for name, table in self.tables.items()}

    def _table(self, name: str) -> SimulatedTable:
        stream = SimulatedStream(self._arn(name, 0), self.plan.shards)
        return SimulatedTable(name, [stream], [0] * self.plan.items, [False] * self.plan.items)

    def _arn(self, table: str, number: int) -> str:
        if self.plan.kinesis:
            return f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{table}"
        label = f"2026-01-01T00:00:{number:02d}.000"
        return f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{table}/stream/{label}"

    def stream(self, arn: str) -> SimulatedStream | None:
        """Return a stream by its ARN, None when there is none."""
        streams = [stream for table in self.tables.values() for stream in table.streams]
        streams += [stream for table in self.deleted for stream in table.streams if stream.shards]
        return next((stream for stream in streams if stream.arn == arn), None)

    def step(self) -> None:
        """Make one change of one item; now and then reshape or trim a stream, or switch it off."""
        self.made += 1
        while self._due and self._due[0][0] <= self.made:
            self._due.pop(0)[1]()
        table = self._dice.choice(list(self.tables.values()))
        self._change(table)
        plan = self.plan
        if plan.reshape_every and self.made % plan.reshape_every == 0:
            self._reshape(self._dice.choice(list(self.tables.values())).stream)
        if plan.grow_every and self.made % plan.grow_every == 0:
            self._grow(self._dice.choice(list(self.tables.values())[:GROWING]).stream)
        if plan.trim_every and self.made % plan.trim_every == 0:
            self._trim_suddenly(table.stream)
        if plan.renew_every and self.made % plan.renew_every == 0:
            self._switch_off(table)
        if plan.guest_every and self.made % plan.guest_every == 0:
            self._welcome()

    def drop(self, table: str) -> None:
        """Forget a table and its streams, as if they had never been."""
        del self.tables[table]

    def settle(self) -> None:
        """List every shard, and switch the streams on that are off: nothing more will happen."""
        for delivery in self._deliveries.values():
            delivery.settle()
        while self.plan.lag and self._due and self._due[0][0] <= self.made + self.plan.lag:
            self._due.pop(0)[1]()
        for table in self.tables.values():
            if table.off:
                table.off = 0
                self._switch_on(table)
            for stream in table.streams:
                for shard in stream.shards.values():
                    shard.listed = True

    def later(self, changes: int, what: Callable[[], object]) -> None:
        """Do something after so many changes."""
        self._due.append((self.made + changes, what))
        self._due.sort(key=lambda due: due[0])

    # -- changes ------------------------------------------------------------------------------------------------------

    def _change(self, table: SimulatedTable) -> None:
        item = self._dice.randrange(self.plan.items)
        before = table.versions[item] if table.exists[item] else None
        removed = before is not None and self._dice.random() < 0.1
        table.versions[item] += 1
        table.exists[item] = not removed
        event_id = f"{self._dice.getrandbits(128):032x}"
        if table.off:
            table.unrecorded += 1
            table.off -= 1
            if not table.off:
                self._switch_on(table)
            return
        large = self.plan.large_every and self.made % self.plan.large_every == 0
        after = None if removed else table.versions[item]
        key = f"item-{item}"
        table.changes.setdefault(key, []).append(event_id)
        if self.plan.kinesis:
            data = delivered(event_id, table.name, key, before, after, self.clock(), LARGE if large else 60)
            self._deliveries[table.name].add(key, event_id, data)
            return

        made_at = self.clock()

        def body(sequence: int) -> bytes:
            return _record(event_id, key, before, after, sequence, made_at, LARGE if large else 60)

        self._record_late(table, key, partial(table.stream.put, hash_key(key), event_id, body))

    def _record_late(self, table: SimulatedTable, key: str, put: Callable[[], object]) -> None:
        """Put a change into its stream after a while, but never before an earlier one of its item."""
        if not self.plan.lag:
            put()
            return
        due = max(self.made + self._dice.randint(0, self.plan.lag), table.recorded.get(key, 0))
        table.recorded[key] = due
        self.later(due - self.made, put)

    def items(self, table: str) -> Iterator[tuple[int, int]]:
        """Yield what is in a table now: the number and version of each item."""
        found = self.tables[table]
        return ((n, version) for n, version in enumerate(found.versions) if found.exists[n])

    # -- streams ------------------------------------------------------------------------------------------------------

    def _reshape(self, stream: SimulatedStream) -> None:
        if not stream.open:
            return
        before, shard = self._before_reshaping(stream), self._dice.choice(stream.open)
        if self._dice.random() < 0.3 and len(stream.open) < self.plan.most_shards:
            stream.split(shard)
        elif not (self._dice.random() < 0.3 and self.plan.kinesis and stream.merge(shard)):
            stream.roll(shard)  # DynamoDB's shards name one parent: of two, one could not be waited for
        self.reshapes += 1
        self._after_reshaping(stream, before)

    def _grow(self, stream: SimulatedStream) -> None:
        """Split every open shard, while there is room."""
        before = self._before_reshaping(stream)
        for shard in before:
            if len(stream.open) < self.plan.most_shards:
                stream.split(shard)
                self.reshapes += 1
        self._after_reshaping(stream, before)

    def _before_reshaping(self, stream: SimulatedStream) -> list[SimulatedShard]:
        if self.plan.kinesis:  # what was delivered goes into the shards as they are
            self._deliveries[stream.arn.rpartition("/")[2]].settle()
        return list(stream.open)

    def _after_reshaping(self, stream: SimulatedStream, before: list[SimulatedShard]) -> None:
        self.widest = max(self.widest, len(stream.open))
        for born in [shard for shard in stream.open if shard not in before]:
            self._list_late(stream, born)
        for closed in [one for one in before if not one.is_open]:
            self._forget_late(stream, closed)

    def _list_late(self, stream: SimulatedStream, shard: SimulatedShard) -> None:
        def list_it() -> None:
            stream.show(shard)

        self.later(self._dice.randint(0, self.plan.late), list_it)

    def _forget_late(self, stream: SimulatedStream, shard: SimulatedShard) -> None:
        def forget() -> None:
            if _is_untouched(stream):
                self._forget_late(stream, shard)
            elif shard.shard_id in stream.shards:
                stream.trim(shard, len(shard.records))

        self.later(self.plan.kept, forget)

    def _welcome(self) -> None:
        """Make a table; delete the oldest of those that came so, if there are three of them then and it has been read."""
        self.come += 1
        name = f"{GUEST}{self.come}"
        self.tables[name] = self._table(name)
        guests = [table for table in self.tables.values() if table.name.startswith(GUEST)]
        if len(guests) > 2 and guests[0].stream.read:
            gone = self.tables.pop(guests[0].name)
            for shard in list(gone.stream.open):
                gone.stream.close(shard)
                self._forget_late(gone.stream, shard)
            self.deleted.append(gone)

    def _trim_suddenly(self, stream: SimulatedStream) -> None:
        if _is_untouched(stream):
            return  # what was trimmed before a stream was found is nobody's loss, but would look like one
        shard = self._dice.choice(list(stream.shards.values()))
        stream.trim(shard, len(shard.records) // 2)

    def _switch_off(self, table: SimulatedTable) -> None:
        for shard in list(table.stream.open):
            table.stream.close(shard)
            self._forget_late(table.stream, shard)
        table.off = self.plan.off

    def _switch_on(self, table: SimulatedTable) -> None:
        table.streams.append(SimulatedStream(self._arn(table.name, len(table.streams)), self.plan.shards))

    # -- the truth ----------------------------------------------------------------------------------------------------

    def truth(self) -> dict[str, Any]:
        """Return what happened: for each table its items' changes in order, what was trimmed, and its streams."""
        return {
            "made": self.made,
            "reshapes": self.reshapes,
            "widest": self.widest,
            "come": self.come,
            "gone": len(self.deleted),
            "tables": {
                table.name: {
                    "changes": table.changes,
                    "delivered": table.delivered,
                    "unrecorded": table.unrecorded,
                    "streams": [stream.arn for stream in table.streams],
                    "trimmed": [one for stream in table.streams for one in stream.trimmed],
                }
                for table in [*self.tables.values(), *self.deleted]
            },
        }


class Delivery:
    """How DynamoDB delivers a table's changes into its Kinesis stream: some twice, some behind those of other items."""

    def __init__(self, world: World, table: SimulatedTable) -> None:
        self._world, self._table, self._stream = world, table, table.stream
        self._dice = random.Random(world.plan.seed)  # noqa: S311 - a history that can be had again
        self._held: dict[str, tuple[str, bytes]] = {}
        """The change of an item that waits until others have come."""
        self._strays: dict[str, tuple[str, bytes]] = {}
        """By event ID, key and bytes of changes that also let later ones of their items go before."""
        self._packed: dict[str, list[tuple[str, str, bytes]]] = {}
        """What is packed for a shard and not put yet."""

    def add(self, key: str, event_id: str, data: bytes) -> None:
        """Deliver a change: before an earlier one of its item only if that is a stray."""
        self._release(key)
        plan = self._world.plan
        if plan.shuffled and self._dice.random() < plan.shuffled:
            self._strays[event_id] = key, data
            self._world.later(self._dice.randint(1, STRAY_CHANGES), partial(self._bring, event_id))
        elif self._dice.random() < plan.reordered:
            self._held[key] = event_id, data
            self._world.later(self._dice.randint(1, 10), partial(self._release, key))
        else:
            self._put(key, event_id, data)

    def settle(self) -> None:
        """Deliver what waits."""
        for event_id in list(self._strays):
            self._bring(event_id)
        for key in list(self._held):
            self._release(key)
        for shard_id in list(self._packed):
            self._flush(shard_id)

    def _release(self, key: str) -> None:
        if key in self._held:
            self._put(key, *self._held.pop(key))

    def _bring(self, event_id: str) -> None:
        if event_id in self._strays:
            key, data = self._strays.pop(event_id)
            self._put(key, event_id, data)

    def _put(self, key: str, event_id: str, data: bytes) -> None:
        shard_id = self._stream.taker(hash_key(key)).shard_id
        packed = self._packed.setdefault(shard_id, [])
        packed.append((key, event_id, data))
        if len(packed) >= self._world.plan.aggregate:
            self._flush(shard_id)
        if self._dice.random() < self._world.plan.duplicates:
            self._world.later(self._dice.randint(1, 50), partial(self._put_again, key, event_id, data))

    def _put_again(self, key: str, event_id: str, data: bytes) -> None:
        put_record(self._stream, key, event_id, data, self._world.clock())

    def _flush(self, shard_id: str) -> None:
        packed = self._packed.pop(shard_id)
        now = self._world.clock()
        for key, event_id, _ in packed:
            self._table.delivered.setdefault(key, []).append((event_id, round(now, 3)))
        key, event_id, data = packed[0]
        if self._world.plan.aggregate > 1:
            data = aggregate([Sub(key, data) for key, _, data in packed])
        put_record(self._stream, key, event_id, data, now)


def _is_untouched(stream: SimulatedStream) -> bool:
    """Say whether it belongs to a table that has come on the way, and nobody has found it yet."""
    return f"/{GUEST}" in stream.arn and not stream.read


def hash_key(partition_key: str) -> int:
    """Return the hash key that decides which shard takes a record."""
    return int.from_bytes(hashlib.md5(partition_key.encode(), usedforsecurity=False).digest())


def put_record(stream: SimulatedStream, partition_key: str, event_id: str, data: bytes, at: float) -> None:
    """Put a record into a Kinesis stream."""

    def body(sequence: int) -> bytes:
        return encode(
            {
                "Data": data,
                "PartitionKey": partition_key,
                "SequenceNumber": str(sequence),
                "ApproximateArrivalTimestamp": round(at, 3),
            }
        )

    stream.put(hash_key(partition_key), event_id, body)


def delivered(
    event_id: str, table: str, key: str, before: int | None, after: int | None, at: float, padding: int = 60
) -> bytes:
    """Return a change as DynamoDB delivers it into a Kinesis stream."""
    body: dict[str, Any] = {
        "ApproximateCreationDateTime": round(at * 1_000_000),
        "ApproximateCreationDateTimePrecision": "MICROSECOND",
        "Keys": {"id": {"S": key}},
        "SizeBytes": 100 + padding,
        **_images(key, before, after, padding),
    }
    head = {"awsRegion": REGION, "eventID": event_id, "eventName": _name(before, after), "userIdentity": None}
    format_and_table = {"recordFormat": "application/json", "tableName": table}
    return encode(head | format_and_table | {"dynamodb": body, "eventSource": "aws:dynamodb"})


def _name(before: int | None, after: int | None) -> str:
    return "REMOVE" if after is None else "INSERT" if before is None else "MODIFY"


def _images(key: str, before: int | None, after: int | None, padding: int) -> dict[str, Any]:
    images = {"NewImage": after, "OldImage": before}
    return {name: image(key, version, padding) for name, version in images.items() if version is not None}


def image(key: str, version: int, padding: int = 60) -> dict[str, Any]:
    """Return an item as the API gives it."""
    return {"id": {"S": key}, "version": {"N": str(version)}, "pad": {"S": "x" * padding}}


def _record(
    event_id: str, key: str, before: int | None, after: int | None, sequence: int, at: float, padding: int
) -> bytes:
    body: dict[str, Any] = {"ApproximateCreationDateTime": int(at), "Keys": {"id": {"S": key}}}
    body |= _images(key, before, after, padding)
    body |= {"SequenceNumber": str(sequence), "SizeBytes": 100 + padding, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    record = {
        "eventID": event_id,
        "eventName": _name(before, after),
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
    }
    identity = {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}
    by_ttl = {"userIdentity": identity} if after is None and sequence % 3 == 0 else {}
    return encode(record | {"awsRegion": REGION, "dynamodb": body} | by_ttl)
