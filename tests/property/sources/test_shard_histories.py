"""Any history of a stream, read by workers that stop and start: parents before children, every record once."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.sources.shards import Lineage, ReadUpTo, Shard

STEPS = ["roll over", "split", "merge", "write", "trim", "discover", "hear", "read", "read", "catch up", "crash"]
Step = tuple[str, int, int, int]
a_step = st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.integers(0, 5), st.integers(0, 3))


@dataclass
class Stream:
    """A stream as AWS keeps it: every shard ever made in order of birth, its records, and what was trimmed."""

    shards: list[Shard] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    trimmed: int = 0

    def add(self, parents: tuple[str, ...], records: int) -> None:
        # The IDs say nothing about age or kinship: only the lineage may.
        shard_id = f"shard-{len(self.shards) * 7919 % 9973:04d}"
        self.shards.append(Shard(shard_id, parents))
        self.records[shard_id] = records
        self.open = [other for other in self.open if other not in parents] + [shard_id]

    def listing(self, late: int) -> list[Shard]:
        """What was trimmed is gone, and the newest `late` shards are not listed yet."""
        return self.shards[self.trimmed : max(self.trimmed, len(self.shards) - late)]

    def trim(self, count: int) -> None:
        """Drop the oldest closed shards with their records."""
        while count and self.shards[self.trimmed].shard_id not in self.open:
            self.trimmed += 1
            count -= 1

    def exists(self, shard_id: str) -> bool:
        return any(shard.shard_id == shard_id for shard in self.shards[self.trimmed :])

    def is_closed(self, shard_id: str) -> bool:
        return shard_id not in self.open


@dataclass
class Worker:
    """What one worker knows: a listing, and what it heard last of positions. Both may be old."""

    listed: list[Shard] = field(default_factory=list)
    heard: dict[str, ReadUpTo] = field(default_factory=dict)


@dataclass
class Group:
    """Workers that share the shards of a stream. What is committed outlives them, and so does what came out."""

    stream: Stream
    workers: list[Worker]
    committed: dict[str, ReadUpTo] = field(default_factory=dict)
    out: list[tuple[str, int]] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)

    def owns(self, number: int, shard_id: str) -> bool:
        return int(shard_id[-4:]) % len(self.workers) == number

    def lineage(self, number: int) -> Lineage:
        """The lineage as one worker sees it: of its own shards it knows the positions, of others what it heard."""
        worker = self.workers[number]
        others = {shard: position for shard, position in worker.heard.items() if not self.owns(number, shard)}
        own = {shard: position for shard, position in self.committed.items() if self.owns(number, shard)}
        return Lineage(worker.listed, {**others, **own})

    def readable(self, number: int) -> dict[str, ReadUpTo]:
        readable = self.lineage(number).readable()
        return {shard: position for shard, position in readable.items() if self.owns(number, shard)}

    def hear(self, number: int) -> None:
        self.workers[number].heard = dict(self.committed)

    def discover(self, number: int, late: int) -> None:
        """List the shards anew, and forget what may be forgotten: it must make no difference."""
        self.workers[number].listed = self.stream.listing(late)
        before = self.readable(number)
        for shard_id in self.lineage(number).forgettable():
            if self.owns(number, shard_id):
                del self.committed[shard_id]
                event("forgot a shard")
        assert self.readable(number) == before

    def crash(self, number: int) -> None:
        self.workers[number] = Worker()

    def read(self, number: int, pick: int, count: int) -> None:
        """Read some records of any shard that this worker may read, and commit them with the position."""
        readable = list(self.readable(number).items())
        if not readable:
            return
        shard_id, position = readable[pick % len(readable)]
        first = 0 if position.after is None else int(position.after) + 1
        last = min(first + count, self.stream.records[shard_id])
        if not self.stream.exists(shard_id):  # ResourceNotFound: what was not read is a gap
            self.end(shard_id, position.after)
            return
        self.out += [(shard_id, record) for record in range(first, last)]
        after = str(last - 1) if last > first else position.after
        self.committed[shard_id] = ReadUpTo(after)
        if self.stream.is_closed(shard_id) and last == self.stream.records[shard_id]:
            self.end(shard_id, after)

    def catch_up(self) -> None:
        """Let every worker look afresh and read all that it then may."""
        for number in range(len(self.workers)):
            self.hear(number)
            self.discover(number, late=0)
            for pick in range(len(self.readable(number))):
                self.read(number, pick, 9)

    def end(self, shard_id: str, after: str | None) -> None:
        assert shard_id not in self.ended, f"{shard_id} was read again"
        self.ended.add(shard_id)
        self.committed[shard_id] = ReadUpTo(after, finished=True)

    def unread(self) -> list[str]:
        """The shards that are there and were not read to where they stand."""
        came: dict[str, int] = {}
        for shard_id, _ in self.out:
            came[shard_id] = came.get(shard_id, 0) + 1
        there = [shard.shard_id for shard in self.stream.shards[self.stream.trimmed :]]
        return [
            shard
            for shard in there
            if came.get(shard, 0) < self.stream.records[shard]
            or (self.stream.is_closed(shard) and shard not in self.ended)
        ]


@settings(max_examples=400, deadline=None)
@given(roots=st.integers(1, 2), workers=st.integers(1, 3), steps=st.lists(a_step, min_size=8, max_size=80))
def test_parents_are_drained_before_children_and_every_record_comes_out_once(
    roots: int, workers: int, steps: list[Step]
) -> None:
    stream = Stream()
    for _ in range(roots):
        stream.add((), records=1)
    group = Group(stream, [Worker() for _ in range(workers)])

    for step in steps:
        take(group, *step)
    drain(group)

    check_order(group)
    event("something was trimmed" if stream.trimmed else "nothing was trimmed")


def take(group: Group, step: str, who: int, which: int, amount: int) -> None:
    """Let one thing happen. `who` picks a worker or a shard, `which` another shard, each modulo what there is."""
    stream, number = group.stream, who % len(group.workers)
    parent, partner = stream.open[who % len(stream.open)], stream.open[which % len(stream.open)]
    match step:
        case "roll over":
            stream.add((parent,), amount)
        case "split":
            stream.add((parent,), amount)
            stream.add((parent,), which)
        case "merge":
            stream.add(tuple(dict.fromkeys((parent, partner))), amount)
        case "write":
            stream.records[parent] += amount
        case "trim":
            stream.trim(amount)
        case "discover":
            group.discover(number, late=amount)
        case "hear":
            group.hear(number)
        case "read":
            group.read(number, which, amount)
        case "catch up":
            group.catch_up()
        case "crash":
            group.crash(number)


def drain(group: Group) -> None:
    """Read on, the listings now whole, until everything that is there was read; some shard must always lead on."""
    while unread := group.unread():
        progress = len(group.out), len(group.ended)
        group.catch_up()
        assert (len(group.out), len(group.ended)) != progress, f"nothing leads on to {unread}"
    # One more round, in which nothing may come twice, and what was begun and then trimmed ends.
    group.catch_up()
    begun = [shard for shard, position in group.committed.items() if not position.finished]
    assert all(group.stream.exists(shard) for shard in begun), "a shard that is gone is still being read"


def check_order(group: Group) -> None:
    assert len(group.out) == len(set(group.out)), "a record came out twice"
    begins: dict[str, int] = {}
    ends: dict[str, int] = {}
    came: dict[str, list[int]] = {}
    for place, (shard_id, record) in enumerate(group.out):
        begins.setdefault(shard_id, place)
        ends[shard_id] = place
        came.setdefault(shard_id, []).append(record)
    for shard in group.stream.shards:
        mine = came.get(shard.shard_id, [])
        assert mine == list(range(len(mine)))
        if group.stream.exists(shard.shard_id):
            assert len(mine) == group.stream.records[shard.shard_id]
        for parent in shard.parents:
            if mine and parent in ends:
                assert ends[parent] < begins[shard.shard_id], f"{parent} was read after its child {shard.shard_id}"
