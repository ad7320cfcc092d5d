"""The parts of the chaos that need no broker: the verdict, the page, the disk, the wish of a kill."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import Producer

from pipeline.lab import disk
from pipeline.lab.chaos_report import MEANING, Options, Report, section
from pipeline.lab.killer import Killer, ask
from pipeline.transport import Slice

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize("wrong", ["lost", "duplicated", "out_of_order"])
def test_one_wrong_change_is_a_failure(wrong: str) -> None:
    report = Report(input=5, output=5)
    assert report.ok
    setattr(report, wrong, 1)
    assert not report.ok


def test_the_section_has_every_fault_the_figures_and_the_command() -> None:
    report = Report(faults=dict.fromkeys(MEANING, 8), input=1_234, output=1_234, aborted=5, seconds=600.5, seed=42)
    report.left_out = {"fill disk": "mount: permission denied"}
    text = section(report, Options(Path("any"), faults=96), BEGAN, "Apache Kafka on a machine")
    assert all(f"| {meaning} | 8 |" in text for meaning in MEANING.values())
    assert "Nothing was lost, doubled or reordered. 2026-03-01 00:00 UTC; Apache Kafka on a machine." in text
    assert "| changes in the raw topic | 1,234 |" in text
    assert "headwater chaos --faults 96 --seed 42 --rate 5000" in text
    assert "Left out, fill disk: mount: permission denied" in text
    report.lost = 1
    assert "**The output was wrong.**" in section(report, Options(Path("any")), BEGAN, "")


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
