"""The store of event IDs: remembered for a window, forgotten by whole buckets, one point in time after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline.state.buckets import Buckets, bucket_of

WINDOW = 100.0


def test_an_id_is_remembered_for_a_whole_window_and_then_leaves_with_its_bucket(tmp_path: Path) -> None:
    store = Buckets(tmp_path / "ids")
    store.add({bucket_of(49, WINDOW): [b"old"]}, upto=1)
    for at in range(50, 150, 10):
        store.add({bucket_of(at, WINDOW): [f"{at}".encode()]}, upto=at)
        assert store.known([b"old"]) == [at < 49 + WINDOW + 1], at
    store.add({bucket_of(150, WINDOW): [b"new"]}, upto=150)
    assert store.known([b"old", b"50", b"140", b"new"]) == [False, True, True, True]
    assert len(store.buckets) == 3
    store.close()


def test_a_store_opens_with_its_buckets_and_positions(tmp_path: Path) -> None:
    store = Buckets(tmp_path / "ids")
    store.add({1: [b"a"], 2: [b"b"]}, upto=7, changelog=3)
    store.close()
    again = Buckets(tmp_path / "ids")
    assert again.known([b"a", b"b", b"c"]) == [True, True, False]
    assert (again.meta("upto"), again.meta("changelog"), again.buckets) == (7, 3, [1, 2])
    again.close()


def test_what_survives_a_kill_is_a_prefix_with_its_position(tmp_path: Path) -> None:
    """Without a log, positions and IDs are in several column families: they must be of one point in time."""
    code = (
        "import os, sys; from pathlib import Path; from pipeline.state.buckets import Buckets\n"
        "store = Buckets(Path(sys.argv[1]))\n"
        "for n in range(150):\n"
        "    ids = [n.to_bytes(4) + m.to_bytes(12) for m in range(20000)]\n"
        "    store.add({n // 60: ids}, upto=n)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "ids")], check=False, env=os.environ)
    assert done.returncode == -9
    store = Buckets(tmp_path / "ids")
    upto = store.meta("upto")
    assert upto is not None
    assert 0 < upto < 149, "RocksDB has flushed by itself, but not all of it"
    for n in range(150):
        assert store.known([n.to_bytes(4) + (7).to_bytes(12)]) == [n <= upto], n
    store.close()
