"""The store of event IDs: remembered for a window, forgotten by whole buckets, one point in time after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.state.buckets import Buckets, bucket_of

WINDOW = 100.0


def known(store: Buckets, ids: list[bytes]) -> list[bool]:
    unknown = store.unknown(ids)
    return [one not in unknown for one in ids]


@pytest.mark.parametrize("flush", [True, False], ids=["in files", "in memory"])
def test_an_id_is_remembered_for_a_whole_window(tmp_path: Path, flush: bool) -> None:
    store = Buckets(tmp_path / "ids")
    store.add({bucket_of(49, WINDOW): [b"old"]}, upto=1)
    for at in range(50, 150, 10):
        store.add({bucket_of(at, WINDOW): [f"{at}".encode()]}, upto=at)
        if flush:
            store.flush()
        if at < 49 + WINDOW + 1:
            assert known(store, [b"old"]) == [True], at
    store.add({bucket_of(150, WINDOW): [b"new"]}, upto=150)
    store.flush()
    assert known(store, [b"old", b"50", b"140", b"new"]) == [False, True, True, True]
    assert len(store.buckets) == 3
    store.close()


def test_a_store_opens_with_its_buckets_and_positions(tmp_path: Path) -> None:
    store = Buckets(tmp_path / "ids")
    store.add({1: [b"a"], 2: [b"b"]}, upto=7, changelog=3)
    store.flush()
    store.add({1: [b"late"]}, upto=8, changelog=4)
    store.flush()
    store.add({}, upto=9, changelog=5)
    assert store.meta("upto") == 9
    store.flush()
    store.close()
    again = Buckets(tmp_path / "ids")
    assert known(again, [b"a", b"b", b"c", b"late"]) == [True, True, False, True]
    assert (again.meta("upto"), again.meta("changelog"), again.buckets) == (9, 5, [1, 2])
    again.close()


def test_what_is_loaded_is_known_after_the_flush_and_lives_with_its_positions(tmp_path: Path) -> None:
    store = Buckets(tmp_path / "ids")
    store.add({1: [b"before"]}, upto=1)
    store.load({1: [b"a"], 2: [b"b"]}, upto=2)
    store.load({}, upto=3)
    store.flush()
    assert known(store, [b"before", b"a", b"b", b"c"]) == [True, True, True, False]
    store.close()
    again = Buckets(tmp_path / "ids")
    assert known(again, [b"before", b"a", b"b", b"c"]) == [True, True, True, False]
    assert again.meta("upto") == 3
    again.close()


def test_an_id_that_a_file_has_may_come_again(tmp_path: Path) -> None:
    store = Buckets(tmp_path / "ids")
    for upto in (1, 2):
        store.add({1: [b"a", b"b"]}, upto=upto)
        store.flush()
    assert known(store, [b"a", b"b", b"c"]) == [True, True, False]
    assert store.meta("upto") == 2
    store.close()


def test_what_survives_a_kill_is_a_prefix_with_its_position(tmp_path: Path) -> None:
    """IDs are in several column families and files, positions in one: a kill must not leave positions alone."""
    code = (
        "import os, sys; from pathlib import Path; from pipeline.state.buckets import Buckets\n"
        "store = Buckets(Path(sys.argv[1]))\n"
        "for n in range(150):\n"
        "    ids = [n.to_bytes(4) + m.to_bytes(12) for m in range(2000)]\n"
        "    store.add({n // 60: ids}, upto=n)\n"
        "    if n % 40 == 39: store.flush()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "ids")], check=False, env=os.environ)
    assert done.returncode == -9
    store = Buckets(tmp_path / "ids")
    assert store.meta("upto") == 119
    for n in range(150):
        assert known(store, [n.to_bytes(4) + (7).to_bytes(12)]) == [n <= 119], n
    store.close()


def test_a_kill_in_the_middle_of_a_flush_leaves_no_position_without_its_ids(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pipeline.state import buckets\n"
        "store = buckets.Buckets(Path(sys.argv[1]))\n"
        "store.add({1: [b'a']}, upto=1)\n"
        "store.flush()\n"
        "store.add({1: [b'b'], 2: [b'c']}, upto=2)\n"
        "write = store._flush_family\n"
        "store._flush_family = lambda bucket: os.kill(os.getpid(), 9) if bucket == 2 else write(bucket)\n"
        "store.flush()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "ids")], check=False, env=os.environ)
    assert done.returncode == -9
    store = Buckets(tmp_path / "ids")
    assert store.meta("upto") == 1
    assert known(store, [b"a", b"c"]) == [True, False]
    store.close()
