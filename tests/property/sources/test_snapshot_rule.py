"""A snapshot beside its stream: whatever the order of events, raw replayed from empty is the table.

The simulator's world and its API, the real cutting, scanning, tips and joining; what is left out is Kafka and the threads:
one thing happens after another, as the dice say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from support.raw_reader import goes_back, replay

from headwater.lab.simulator.dynamodb import DynamoDB
from headwater.lab.simulator.faults import Rates, ServiceFaults
from headwater.lab.simulator.world import World, WorldPlan
from models.change import decode
from models.snapshot import BEGIN, END, mark
from pipeline.sources.dynamodb.records import cut_answer
from pipeline.sources.shard_positions import ShardPosition
from pipeline.sources.shards import Lineage, ReadUpTo, Shard
from pipeline.sources.snapshots.known import Segment, Snapshot
from pipeline.sources.snapshots.scan import rows_of
from pipeline.sources.snapshots.tips import is_reached, tip_of
from pipeline.steps.snapshot import admit

pytestmark = pytest.mark.slow

SHORT = (Phase.explicit, Phase.reuse, Phase.generate)
"""Without shrinking: an example takes long, and its seed says all."""
TABLE = "orders"
STREAMS, TABLES = "DynamoDBStreams_20120810.", "DynamoDB_20120810."


@dataclass
class MemoryInADict:
    """What `state.delivered.Memory` is on disk."""

    running: dict[str, str] = field(default_factory=dict)
    items: set[tuple[str, bytes]] = field(default_factory=set)

    def runs(self, table: str, snapshot: str | None = None) -> bool:
        return table in self.running and snapshot in {None, self.running[table]}

    def begin(self, table: str, snapshot: str) -> None:
        self.running[table] = snapshot

    def end(self, table: str, snapshot: str) -> None:
        self.running.pop(table)
        self.items.clear()

    def remember(self, table: str, key: bytes) -> None:
        self.items.add((table, key))

    def delivered(self, table: str, snapshot: str, key: bytes) -> bool:
        return (table, key) in self.items


class Pipeline:
    """Reads a world: its stream by shards, its table by segments; a change of the world is a tick of the clock."""

    def __init__(self, world: World, settle: float, seed: int) -> None:
        self.world, self.settle = world, settle
        self.api = DynamoDB(world, ServiceFaults(Rates(), seed)).calls
        self.dice = random.Random(seed)  # noqa: S311 - an example that can be had again
        self.arn = world.tables[TABLE].stream.arn
        self.listed: list[Shard] = []
        self.places: dict[str, ShardPosition] = {}
        self.empty: dict[str, int] = {}
        self.iterators: dict[str, str] = {}
        self.snapshot = Snapshot(TABLE, "s1", 2)
        self.segments = [Segment(), Segment()]
        self.waiting: list[list[tuple[Any, Segment, float]]] = [[], []]
        self.raw: list[tuple[bytes, bytes]] = []
        self.memory = MemoryInADict()

    def call(self, name: str, **request: Any) -> Any:
        return msgspec.json.decode(self.api[name](request))

    def ingest(self, records: list[tuple[bytes | None, bytes]]) -> None:
        """The ingest topic and the deduplicate agent in one: all records of a partition, in order."""
        joined = admit(records, self.memory)
        self.raw += [(key or b"", value) for (key, value), keep in zip(records, joined.keep, strict=True) if keep]

    def list(self) -> None:
        shards: list[Shard] = []
        start: dict[str, Any] = {}
        while True:
            page = self.call(f"{STREAMS}DescribeStream", StreamArn=self.arn, **start)["StreamDescription"]
            parents = ((shard, shard.get("ParentShardId")) for shard in page["Shards"])
            shards += [Shard(shard["ShardId"], (parent,) if parent else ()) for shard, parent in parents]
            if "LastEvaluatedShardId" not in page:
                break
            start = {"ExclusiveStartShardId": page["LastEvaluatedShardId"]}
        self.listed = shards

    def read(self) -> None:
        """Ask one shard once."""
        lineage = Lineage(self.listed, {s: ReadUpTo(p.after, p.finished) for s, p in self.places.items()})
        readable = list(lineage.readable())
        if not readable:
            return
        shard_id = self.dice.choice(readable)
        before = self.places.get(shard_id, ShardPosition(TABLE, None))
        at = self.world.clock()
        if shard_id not in self.iterators:
            where = {"StreamArn": self.arn, "ShardId": shard_id, "ShardIteratorType": "TRIM_HORIZON"}
            self.iterators[shard_id] = self.call(f"{STREAMS}GetShardIterator", **where)["ShardIterator"]
        limit = self.dice.choice([1, 3, 1000])
        body = self.api[f"{STREAMS}GetRecords"]({"ShardIterator": self.iterators[shard_id], "Limit": limit})
        found = cut_answer(body, self.arn)
        self.iterators[shard_id] = found.next_iterator or ""
        self.ingest([(record["key"], record["value"]) for record in found.records])
        finished, last = found.next_iterator is None, None
        if found.records:
            last = decode(found.records[-1]["value"]).ts_us / 1e6
        read_to = 0.0 if finished else tip_of(last, self.empty.get(shard_id, 0), at)
        self.empty[shard_id] = 0 if found.records else self.empty.get(shard_id, 0) + 1
        self.places[shard_id] = ShardPosition(TABLE, found.last or before.after, finished, at, max(read_to, before.tip))

    def scan(self) -> None:
        """Scan a page of a segment, or let one go."""
        number = self.dice.randrange(2)
        waiting = self.waiting[number]
        if waiting and is_reached(self.listed, self.places, waiting[0][2] + self.settle):
            records, segment, _ = waiting.pop(0)
            self.ingest([(record["key"], record["value"]) for record in records])
            self.segments[number] = segment
        elif len(waiting) < 3 and not (waiting[-1][1] if waiting else self.segments[number]).finished:
            at = waiting[-1][1] if waiting else self.segments[number]
            start = {} if at.after is None else {"ExclusiveStartKey": at.after}
            request = {"TableName": TABLE, "Segment": number, "TotalSegments": 2, "ConsistentRead": True}
            body = self.api[f"{TABLES}Scan"]({**request, **start})
            page = rows_of(body, self.snapshot, at, ("id",), "eu-west-1", self.world.clock())
            waiting.append((page.cut.records, page.segment, self.world.clock()))

    @property
    def done(self) -> bool:
        return all(segment.finished for segment in self.segments)

    @property
    def drained(self) -> bool:
        """Whether nothing is left, now that the world stands still."""
        shards = self.world.tables[TABLE].stream.shards
        return all(s in self.places and (self.places[s].finished or self.empty.get(s, 0) > 0) for s in shards)


def run(seed: int, lag: int, settle: int, before: int, items: int, during: int) -> Pipeline:
    """Make changes, begin to capture, take a snapshot beside more changes, until all is read."""
    plan = WorldPlan(
        seed, (TABLE,), items=items, shards=2, reshape_every=17, late=3, kept=10**9, large_every=0, lag=lag
    )
    world = World(plan)
    world.clock = lambda: float(world.made)
    for _ in range(before):
        world.step()
    pipeline = Pipeline(world, settle, seed)
    # What was changed before the capture began is known to the table alone: the streams are read from here on.
    for stream in world.tables[TABLE].streams:
        for shard in list(stream.shards.values()):
            stream.show(shard)  # AWS forgets a closed shard after a day, when its children have long been listed
        for shard in list(stream.shards.values()):
            stream.trim(shard, len(shard.records))
    pipeline.list()
    pipeline.ingest([(None, mark(TABLE, "s1", BEGIN))])
    dice = pipeline.dice
    left = during
    for _ in range(20_000):
        action = dice.random()
        if action < 0.3 and left:
            world.step()
            left -= 1
        elif action < 0.4:
            pipeline.list()
        elif action < 0.8:
            pipeline.read()
        else:
            pipeline.scan()
        if not left and not pipeline.done:
            left = 20  # the world goes on until the snapshot is done: a tip is a matter of time
        if pipeline.done and not left:
            break
    assert pipeline.done
    pipeline.ingest([(None, mark(TABLE, "s1", END))])
    world.settle()
    pipeline.empty.clear()
    for _ in range(2_000):
        pipeline.list()
        pipeline.read()
        if pipeline.drained:
            return pipeline
    raise AssertionError("the streams are not read to their ends")


worlds = {
    "seed": st.integers(0, 10**6),
    "before": st.integers(0, 120),
    "items": st.integers(2, 60),
    "during": st.integers(20, 200),
}


@settings(max_examples=150, deadline=None, phases=SHORT)
@example(seed=1, lag=3, slack=3, before=86, items=3, during=187)  # a shard is born just before the capture begins
@given(lag=st.integers(0, 6), slack=st.integers(1, 4), **worlds)
def test_with_a_delay_below_the_settle_time_nothing_goes_back_and_raw_is_the_table(
    seed: int, lag: int, slack: int, before: int, items: int, during: int
) -> None:
    pipeline = run(seed, lag, lag + slack, before, items, during)
    assert goes_back(pipeline.raw) == []
    truth = {f"item-{number}": version for number, version in pipeline.world.items(TABLE)}
    assert replay(pipeline.raw) == truth


@settings(max_examples=150, deadline=None, phases=SHORT)
@given(lag=st.integers(5, 40), **worlds)
def test_with_a_delay_above_the_settle_time_raw_still_ends_as_the_table(
    seed: int, lag: int, before: int, items: int, during: int
) -> None:
    pipeline = run(seed, lag, 1, before, items, during)
    truth = {f"item-{number}": version for number, version in pipeline.world.items(TABLE)}
    assert replay(pipeline.raw) == truth


def test_the_delay_is_what_makes_an_item_go_back() -> None:
    """The test above would see an item go back: with a delay far above the settle time some do."""
    assert any(goes_back(run(seed, 40, 1, 60, 30, 120).raw) for seed in range(20))
