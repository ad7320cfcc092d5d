"""The main job, end to end on real parts, by the command that a newcomer types."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Headwater
from support.commands import heeding
from support.waiting import until

from headwater.lab import aws
from headwater.lab.processes import stop


def proved(headwater: Headwater, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run the demo and return its JSON, which must prove that nothing went wrong."""
    done = headwater("demo", "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["lost"], report["duplicated"], report["out_of_order"], report["altered"]) == (0, 0, 0, 0), report
    assert report["written"] == report["raw"]
    assert report["duplicates_dropped"] == report["duplicates_injected"] > 0
    assert report["ingested"] == report["written"] + report["duplicates_injected"]
    assert report["parquet_rows"] == report["sinks"]["orders-settled"] + report["sinks"]["orders-other"] > 0
    assert report["joined"] > 0
    assert report["masked"] > 0
    assert copied(report) or "noida" in arguments
    return report


def copied(report: dict[str, Any]) -> bool:
    """Whether every other destination has what it must have; False where there are none."""
    if (copies := report["copies"]) is None:
        return False
    assert {name: n for name, n in copies.items() if name.endswith("_differences")} == {
        f"{what}_differences": 0 for what in ("mirror", "lake", "iceberg", "replica", "replay")
    }
    assert copies["mirrored"] == sum(report["sinks"].values())
    assert copies["lake_rows"] == report["parquet_rows"]
    assert copies["iceberg_items"] == copies["replica_items"] > 0
    assert copies["replayed"] == report["sinks"]["customers"] + report["sinks"]["orders-all"]
    return True


@pytest.mark.kafka
def test_every_change_arrives_once_in_order_and_as_it_was_written(headwater: Headwater) -> None:
    report = proved(headwater, "--changes", "20000", "--seed", "7", "--broker", "kafka")
    assert report["written"] == 20_000
    assert report["broker"] == "Apache Kafka 4.2.0"
    assert set(report["sinks"]) == {"orders-settled", "orders-other", "orders-all", "customers"}


@pytest.mark.kafka
def test_nothing_is_lost_or_doubled_when_a_worker_is_killed(headwater: Headwater) -> None:
    proved(headwater, "--changes", "10000", "--seed", "8", "--broker", "kafka", "--fault", "kill")


@pytest.mark.kafka
def test_nothing_is_lost_or_doubled_when_a_worker_is_frozen_beyond_its_session(headwater: Headwater) -> None:
    proved(headwater, "--changes", "10000", "--seed", "9", "--broker", "kafka", "--fault", "freeze")


@pytest.mark.kafka
def test_dynamodb_local_serves_as_well(headwater: Headwater, tmp_path: Path) -> None:
    stand_in = aws.dynamodb_local(tmp_path / "dynamodb-local", print)
    process = stand_in.start(detached=False)
    try:
        stand_in.wait_until_ready(process)
        proved(headwater, "--changes", "4000", "--seed", "10", "--broker", "kafka", AWS_ENDPOINT_URL=stand_in.url)
    finally:
        stop([process])


@pytest.mark.alone  # the first join of two workers can hang at this broker, the more so under load
def test_the_fallback_broker_needs_nothing_but_python(headwater: Headwater) -> None:
    report = proved(headwater, "--changes", "2000", "--broker", "noida")
    assert report["broker"].startswith("noida-db")


@pytest.mark.kafka
def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    demo = subprocess.Popen(
        heeding([sys.executable, "-m", "headwater.cli", "demo", "--broker", "kafka", "--dir", str(directory)]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = directory / "workers" / "worker-1.log"
    until(lambda: demo.poll() is not None or (log.exists() and "Ready" in log.read_text()), "a worker")
    assert demo.poll() is None, demo.communicate()
    started = processes_of(directory)
    assert len(started) >= 4, "a broker, a stand-in, two workers"
    demo.send_signal(signal.SIGINT)
    _, said = demo.communicate(timeout=60)
    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []


def processes_of(directory: Path) -> list[int]:
    """Return the processes that work in this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(directory):
                    found.append(int(entry.name))
            except OSError:  # it has ended
                continue
    return found
