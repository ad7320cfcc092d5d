"""Tables whose items change and whose streams are reshaped: one history a seed, step by step, with the truth of it."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.lab.simulator.history import Shard, Stream

REGION, ACCOUNT = "eu-west-1", "000000000000"
LARGE = 300_000
"""Bytes of padding in a large item: both images of it come near a GetRecords answer's megabyte."""
encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Plan:
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
    off: int = 20
    """Changes of a table that nobody records while its stream is off."""
    large_every: int = 3_000
    """Changes between two large ones, 0 for none."""

    @classmethod
    def rough(cls, tables: tuple[str, ...], seed: int, rate: int) -> Plan:
        """Return a plan in which everything happens every few seconds, at this rate of changes a second."""
        return cls(
            seed,
            tables,
            reshape_every=rate * 3 // 2,
            late=rate // 2,
            kept=20 * rate,
            trim_every=5 * rate,
            renew_every=23 * rate,
            off=rate // 10,
        )


@dataclass(slots=True)
class Table:
    """A table, its streams from the oldest to the newest, and what is true of it."""

    name: str
    streams: list[Stream]
    versions: list[int]
    exists: list[bool]
    changes: dict[str, list[str]] = field(default_factory=dict)
    """Event IDs of each item's recorded changes, in order."""
    unrecorded: int = 0
    """Changes that were made while the stream was off."""
    off: int = 0
    """Changes until the stream is on again; 0: it is on."""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def stream(self) -> Stream:
        """The newest stream."""
        return self.streams[-1]


class World:
    """All tables. `step` makes one change; nothing else happens between two steps."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.time) -> None:
        self.plan, self.clock = plan, clock
        self.tables = {name: self._table(name) for name in plan.tables}
        self.made = self.reshapes = 0
        self._dice = random.Random(plan.seed)  # noqa: S311 - a history that can be had again
        self._due: list[tuple[int, Callable[[], None]]] = []

    def _table(self, name: str) -> Table:
        stream = Stream(self._arn(name, 0), self.plan.shards)
        return Table(name, [stream], [0] * self.plan.items, [False] * self.plan.items)

    def _arn(self, table: str, number: int) -> str:
        label = f"2026-01-01T00:00:{number:02d}.000"
        return f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{table}/stream/{label}"

    def stream(self, arn: str) -> Stream | None:
        """Return a stream by its ARN, None when there is none."""
        return next((s for table in self.tables.values() for s in table.streams if s.arn == arn), None)

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
        if plan.trim_every and self.made % plan.trim_every == 0:
            self._trim_suddenly(table.stream)
        if plan.renew_every and self.made % plan.renew_every == 0:
            self._switch_off(table)

    def drop(self, table: str) -> None:
        """Delete a table, its streams with it."""
        del self.tables[table]

    def settle(self) -> None:
        """List every shard, and switch the streams on that are off: nothing more will happen."""
        for table in self.tables.values():
            if table.off:
                table.off = 0
                self._switch_on(table)
            for stream in table.streams:
                for shard in stream.shards.values():
                    shard.listed = True

    def _later(self, changes: int, what: Callable[[], None]) -> None:
        self._due.append((self.made + changes, what))
        self._due.sort(key=lambda due: due[0])

    # -- changes ------------------------------------------------------------------------------------------------------

    def _change(self, table: Table) -> None:
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
        hash_key = int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest())

        def body(sequence: int) -> bytes:
            return _record(event_id, key, before, after, sequence, self.clock(), LARGE if large else 60)

        table.stream.put(hash_key, event_id, body)
        table.changes.setdefault(key, []).append(event_id)

    # -- streams ------------------------------------------------------------------------------------------------------

    def _reshape(self, stream: Stream) -> None:
        if not stream.open:
            return
        before, shard = list(stream.open), self._dice.choice(stream.open)
        if self._dice.random() < 0.3 and len(stream.open) < self.plan.most_shards:
            stream.split(shard)
        elif not (self._dice.random() < 0.3 and stream.merge(shard)):
            stream.roll(shard)
        self.reshapes += 1
        for born in [one for one in stream.open if one not in before]:
            self._list_late(born)
        for closed in [one for one in before if not one.is_open]:
            self._forget_late(stream, closed)

    def _list_late(self, shard: Shard) -> None:
        def list_it() -> None:
            shard.listed = True

        self._later(self._dice.randint(0, self.plan.late), list_it)

    def _forget_late(self, stream: Stream, shard: Shard) -> None:
        def forget() -> None:
            if shard.shard_id in stream.shards:
                stream.trim(shard, len(shard.records))

        self._later(self.plan.kept, forget)

    def _trim_suddenly(self, stream: Stream) -> None:
        shard = self._dice.choice(list(stream.shards.values()))
        stream.trim(shard, len(shard.records) // 2)

    def _switch_off(self, table: Table) -> None:
        for shard in list(table.stream.open):
            table.stream.close(shard)
            self._forget_late(table.stream, shard)
        table.off = self.plan.off

    def _switch_on(self, table: Table) -> None:
        table.streams.append(Stream(self._arn(table.name, len(table.streams)), self.plan.shards))

    # -- the truth ----------------------------------------------------------------------------------------------------

    def truth(self) -> dict[str, Any]:
        """Return what happened: for each table its items' changes in order, what was trimmed, and its streams."""
        return {
            "made": self.made,
            "reshapes": self.reshapes,
            "tables": {
                table.name: {
                    "changes": table.changes,
                    "unrecorded": table.unrecorded,
                    "streams": [stream.arn for stream in table.streams],
                    "trimmed": [one for stream in table.streams for one in stream.trimmed],
                }
                for table in self.tables.values()
            },
        }


def _image(key: str, version: int, padding: int) -> dict[str, Any]:
    return {"id": {"S": key}, "version": {"N": str(version)}, "pad": {"S": "x" * padding}}


def _record(
    event_id: str, key: str, before: int | None, after: int | None, sequence: int, at: float, padding: int
) -> bytes:
    body: dict[str, Any] = {"ApproximateCreationDateTime": int(at), "Keys": {"id": {"S": key}}}
    if after is not None:
        body["NewImage"] = _image(key, after, padding)
    if before is not None:
        body["OldImage"] = _image(key, before, padding)
    name = "REMOVE" if after is None else "INSERT" if before is None else "MODIFY"
    body |= {"SequenceNumber": str(sequence), "SizeBytes": 100 + padding, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    record = {"eventID": event_id, "eventName": name, "eventVersion": "1.1", "eventSource": "aws:dynamodb"}
    identity = {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}
    by_ttl = {"userIdentity": identity} if after is None and sequence % 3 == 0 else {}
    return encode(record | {"awsRegion": REGION, "dynamodb": body} | by_ttl)
