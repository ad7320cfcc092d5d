"""The world behind the simulator when it is rough, with Kinesis: what it does is what AWS may do."""

from __future__ import annotations

import pytest

from headwater.lab.simulator.world import World, WorldPlan
from headwater.lab.soak import lateness


@pytest.mark.parametrize("seed", range(3))
def test_streams_grow_and_no_listing_has_a_child_without_its_parents(seed: int) -> None:
    world = World(WorldPlan.rough(("a", "b", "c"), seed, rate=200, kinesis=True))
    hidden = 0
    for _ in range(12_000):
        world.step()
        for table in world.tables.values():
            shards = table.stream.shards
            for shard in table.stream.listing():
                assert all(parent not in shards or shards[parent].listed for parent in shard.parents)
            hidden += len(shards) - len(table.stream.listing())
    assert world.widest == 64
    assert hidden > 0, "listings are late"


def test_every_change_is_delivered_and_some_late() -> None:
    world = World(WorldPlan.rough(("a", "b"), 1, rate=200, kinesis=True), clock=lambda: float(world.made))
    for _ in range(12_000):
        world.step()
    world.settle()
    late = 0
    for table in world.tables.values():
        for item, happened in table.changes.items():
            delivered = table.delivered[item]
            assert sorted(event_id for event_id, _ in delivered) == sorted(happened)
            by = lateness(happened, delivered)
            assert all(seconds <= 600 for seconds in by.values())
            late += len(by)
    assert late > 100
