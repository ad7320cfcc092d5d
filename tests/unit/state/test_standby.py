"""Which copies a worker keeps: those that would come to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from hypothesis import given
from hypothesis import strategies as st

from pipeline.state.buckets import Buckets
from pipeline.state.seen import SeenTable, pack
from pipeline.state.standby import chosen, shared_out


def test_partitions_are_shared_out_as_the_range_assignor_does() -> None:
    assert shared_out(["b", "a", "c"], range(7)) == {0: "a", 1: "a", 2: "a", 3: "b", 4: "b", 5: "c", 6: "c"}


def test_of_two_workers_each_keeps_the_others_partitions() -> None:
    owners = shared_out(["a", "b"], range(4))
    assert chosen("a", owners, 1) == {2, 3}
    assert chosen("b", owners, 1) == {0, 1}


def test_a_spare_worker_keeps_what_would_come_to_it() -> None:
    owners = shared_out(["a", "b"], range(2))
    assert chosen("c", owners, 1) == {1}
    assert chosen("c", owners, 2) == {0, 1}


def test_a_lone_worker_and_one_without_standbys_keep_nothing() -> None:
    assert chosen("a", shared_out(["a"], range(4)), 1) == set()
    assert chosen("a", shared_out(["a", "b"], range(4)), 0) == set()
    assert chosen("a", {}, 1) == set()


@given(
    members=st.sets(st.text("abcdef", min_size=1), min_size=2, max_size=6),
    partitions=st.integers(1, 30),
    data=st.data(),
)
def test_whoever_is_lost_each_partition_comes_to_a_worker_that_owned_or_kept_it(
    members: set[str], partitions: int, data: st.DataObject
) -> None:
    owners = shared_out(sorted(members), range(partitions))
    alive = sorted(set(owners.values()))  # who owns nothing does not know of others like it
    if len(alive) < 2:
        return
    lost = data.draw(st.sampled_from(alive))
    left = shared_out([member for member in alive if member != lost], range(partitions))
    for partition, member in left.items():
        assert owners[partition] == member or partition in chosen(member, owners, 1)


def test_a_copy_that_was_owned_before_never_has_positions_on_disk_without_their_ids(tmp_path: Path) -> None:
    seen = SeenTable(Mock(), "ingest", "seen", tmp_path, 3600.0)
    part = seen._open_store(0)
    part.store.add({7: [b"in memory"]}, upto=1, changelog=0)
    record: Any = Mock(key=lambda: (2).to_bytes(8, "big"), value=lambda: pack({7: [b"copied"]}), offset=lambda: 1)
    seen._apply(part, [record])
    for bucket in part.store.buckets:
        part.store._flush_family(bucket)  # RocksDB may do so at any time
    shutil.copytree(part.store.path, tmp_path / "after a kill")
    survived = Buckets(tmp_path / "after a kill")
    assert survived.meta("upto") == 2
    assert survived.unknown([b"in memory", b"copied"]) == set()
