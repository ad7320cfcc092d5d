"""The parts of the chaos that need no broker: the plan, the verdict, the page, the disk, the wish of a kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import Producer

from headwater.lab import disk
from headwater.lab.chaos_ledger import LedgerOutcome, compare
from headwater.lab.chaos_load import change_of, key_of, sleep_of
from headwater.lab.chaos_report import MEANING, ChaosOptions, ChaosReport, section
from headwater.lab.faults import plan
from headwater.lab.killer import Killer, ask
from models.gap import Gap
from pipeline.errors import FatalError
from pipeline.state.buckets import Buckets
from pipeline.state.store import Store
from pipeline.transport import Slice

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize("wrong", ["lost", "duplicated", "out_of_order", "stuck"])
def test_one_wrong_change_is_a_failure(wrong: str) -> None:
    report = ChaosReport(input=5, output=5)
    assert report.ok
    setattr(report, wrong, 1)
    assert not report.ok


def test_the_section_has_every_fault_the_figures_and_the_command() -> None:
    report = ChaosReport(faults=dict.fromkeys(MEANING, 8), input=1_234, output=1_234, aborted=5, seconds=600.5, seed=42)
    report.left_out = {"fill disk": "mount: permission denied"}
    text = section(report, ChaosOptions(Path("any"), faults=144), BEGAN, "Apache Kafka on a machine")
    assert all(f"| {meaning} | 8 |" in text for meaning in MEANING.values())
    assert "Nothing was lost, duplicated, reordered or stuck. 2026-03-01 00:00 UTC; Apache Kafka on a machine." in text
    assert "| changes in the raw topic | 1,234 |" in text
    assert "headwater chaos --faults 144 --seed 42 --rate 5000" in text
    assert "Left out, fill disk: mount: permission denied" in text
    report.lost = 1
    assert "**The output was wrong.**" in section(report, ChaosOptions(Path("any")), BEGAN, "")


def schedule(count: int, seed: int) -> list[str]:
    return plan(list(MEANING), count, random.Random(seed))  # noqa: S311 - as the chaos does


def test_every_kind_of_fault_is_in_the_plan_and_a_seed_has_one_plan() -> None:
    for seed in range(50):
        found = schedule(30, seed)
        assert (set(found), len(found)) == (set(MEANING), 30)
        assert found == schedule(30, seed)
        assert len(set(schedule(12, seed))) == 12
    assert schedule(30, 1) != schedule(30, 2)


A1, A2, A3, B1 = (change_of(f"{key:08x}{0:08x}{version:016x}") for key, version in ((0, 1), (0, 2), (0, 3), (1, 1)))
ALL = [A1, A2, B1, A3]


def verdict(
    raw: list[int],
    sink: list[int] | None = None,
    *,
    ingest: list[int] = ALL,
    older: list[int] | None = None,
    letters: list[int] | None = None,
    lake: list[int] | None = None,
    gap: tuple[int, int] | None = None,
    trimmed: int = 0,
) -> ChaosReport:
    """Return the verdict on one partition; nothing said: the sink topic has what raw has, and the lake all of that."""
    sinks = [older or [], raw if sink is None else sink]
    carried = [change for log in sinks for change in log] if lake is None else lake
    gaps = (
        [] if gap is None else [Gap("", "", "", None, "retention", topic="i", partition=0, first=gap[0], last=gap[1])]
    )
    report = ChaosReport()
    outcome = LedgerOutcome(
        {0: ingest},
        {0: list(range(len(ingest)))},
        {0: raw},
        [{0: log} for log in sinks],
        letters or [],
        {change: carried.count(change) for change in carried},
        gaps,
        {0: trimmed},
    )
    compare(report, outcome)
    return report


def faults_of(report: ChaosReport) -> tuple[int, int, int]:
    return report.lost, report.duplicated, report.out_of_order


def test_all_that_was_written_must_be_in_raw_once_and_in_order() -> None:
    assert verdict(ALL).ok
    assert verdict(ALL, ingest=[A1, A1, A2, B1, A1, A3]).ok
    assert faults_of(verdict([A1, A2, A3])) == (1, 0, 0)
    assert faults_of(verdict([*ALL, A1])) == (0, 2, 0), "in raw, and in the sink topic as well"
    assert faults_of(verdict([A2, A1, B1, A3], ALL)) == (0, 0, 2), "on both ways"


def test_a_change_that_a_gap_covers_is_not_lost_and_any_other_is() -> None:
    report = verdict([B1, A3], gap=(0, 1), trimmed=2)
    assert (report.ok, report.gaps, report.in_gaps) == (True, 1, 2)
    assert verdict([A3], gap=(0, 1), trimmed=2).lost == 1
    assert verdict([B1, A3], gap=(0, 0), trimmed=2).lost == 1, "deleted, and in no gap"
    assert verdict([B1, A3], gap=(0, 1), trimmed=1).lost == 1, "in a gap, and never deleted"
    assert verdict(ALL, gap=(0, 1), trimmed=2).duplicated > 0, "said to be lost, and there"


def test_a_duplicate_behind_a_gap_comes_where_it_is() -> None:
    assert verdict([A2, B1, A1, A3], ingest=[A1, A2, B1, A1, A3], gap=(0, 0), trimmed=1).ok
    assert not verdict([A2, B1, A3], ingest=[A1, A2, B1, A1, A3], gap=(0, 0), trimmed=1).ok


def test_a_change_of_raw_is_in_one_of_the_sinks_logs_or_a_dead_letter() -> None:
    assert verdict(ALL, [B1, A3], older=[A1, A2]).ok
    assert verdict(ALL, [A1, B1, A3], letters=[A2]).dead_letters == 1
    assert verdict(ALL, [A1, B1, A3], letters=[A2]).ok
    assert faults_of(verdict(ALL, [A1, B1, A3])) == (1, 0, 0)
    assert faults_of(verdict(ALL, letters=[A2])) == (0, 1, 0)
    assert faults_of(verdict(ALL, [A1, B1, A3], letters=[A2, A2])) == (0, 1, 0)
    assert faults_of(verdict(ALL, [A2, B1, A3], older=[A1, A2])) == (0, 1, 0)


def test_the_lake_has_each_record_of_all_logs_once() -> None:
    assert faults_of(verdict(ALL, older=[], lake=[A1, A2, B1])) == (1, 0, 0)
    assert faults_of(verdict(ALL, lake=[*ALL, A1])) == (0, 1, 0)


def test_an_event_id_says_which_change_it_is_and_how_long_the_step_sleeps() -> None:
    event_id = f"{7:08x}{6_500:08x}{9:016x}"
    assert key_of(change_of(event_id)) == 7
    assert sleep_of(event_id) == 6.5
    assert change_of(event_id) == change_of(f"{7:08x}{0:08x}{9:016x}".encode())


@contextmanager
def mounted(directory: Path) -> Iterator[disk.Disk]:
    if (why := disk.why_not(directory)) is not None:
        pytest.skip(f"no disk can be mounted here: {why}")
    small = disk.Disk(directory / "small")
    small.mount()
    try:
        yield small
    finally:
        small.unmount()


def test_a_full_disk_takes_no_byte_more_until_it_is_freed(tmp_path: Path) -> None:
    with mounted(tmp_path) as small:
        file = small.directory / "file"
        file.write_bytes(b"kept")
        small.fill()
        with pytest.raises(OSError, match="No space left"):
            (small.directory / "other").write_bytes(b"x" * 8_192)
        file.unlink()
        small.fill()
        with pytest.raises(OSError, match="No space left"):
            (small.directory / "other").write_bytes(b"x" * 8_192)
        small.free()
        file.write_bytes(b"x" * 8_192)
        small.lose()
        assert list(small.directory.iterdir()) == []


def test_a_state_whose_disk_is_full_says_so_also_when_it_is_closed(tmp_path: Path) -> None:
    with mounted(tmp_path) as small:
        for kind, how in ((Store, "close"), (Buckets, "flush")):
            store = kind(small.directory / f"{how}.db")
            if isinstance(store, Buckets):
                store.add({1: {b"%064d" % number for number in range(2_000)}}, at=1)
            else:
                store.write((b"%d" % number, os.urandom(4_096)) for number in range(2_000))
            small.fill()
            with pytest.raises(FatalError, match=r"cannot be written: .*No space left on device") as caught:
                getattr(store, how)()
            assert caught.value.hint == f"df -h {small.directory}"
            small.free()


def test_a_process_gets_its_signal_at_the_point_that_was_wished_for_and_once(tmp_path: Path) -> None:
    state = tmp_path / "state"
    killer, work = Killer(state), Slice(Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}))
    with subprocess.Popen(["sleep", "60"]) as victim:
        ask(state, "committed", victim.pid, signal.SIGTERM)
        killer.finish(work)
        assert victim.poll() is None
        killer.committed(work)
        assert victim.wait(10) == -signal.SIGTERM
    ask(state, "finish", os.getpid(), signal.SIGCONT)
    killer.finish(work)
    assert not list(tmp_path.iterdir()), "the wish is forgotten"
