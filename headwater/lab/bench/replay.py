"""The benchmark `replay`: changes through a flow, live by a worker and again by a replay, by turns, on one broker."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from headwater.lab import processes
from headwater.lab.bench import flow_load, flows, load
from headwater.lab.bench.flows import FlowPlace
from headwater.lab.bench.load import LoadOutcome
from headwater.lab.bench.measure import MeasuredProgress
from headwater.lab.stack import Stack
from pipeline.errors import HeadwaterError

Say = Callable[[str], None]
TASK = "pass_through"
TARGET = 0.9
"""Of the live flow's pace."""
SECONDS = 600.0


@dataclass(frozen=True)
class ReplayOptions:
    """What to measure."""

    messages: int = 300_000
    rounds: int = 3


@dataclass
class ReplayResults:
    """Changes a second, and what was missing or doubled, by system: replay, live."""

    paces: dict[str, list[float]] = field(default_factory=dict)
    outcomes: dict[str, list[LoadOutcome]] = field(default_factory=dict)

    def as_json(self) -> dict[str, int]:
        """Return the object that `--json` prints: medians."""
        return {system: round(statistics.median(paces)) for system, paces in self.paces.items()}

    @property
    def failures(self) -> list[str]:
        """What is wrong with the outputs."""
        return [
            f"{system}: {outcome.missing} missing, {outcome.doubled} doubled"
            for system, outcomes in self.outcomes.items()
            for outcome in outcomes
            if outcome.missing or outcome.doubled
        ]


def measure(options: ReplayOptions, say: Say) -> ReplayResults:
    """Measure on a broker of its own."""
    directory = Path(tempfile.mkdtemp(prefix="headwater-bench-"))  # kept when something fails: it holds the logs
    results = ReplayResults()
    with Stack(directory / "stack", broker="kafka", progress=say) as stack:
        if stack.endpoints is None:
            raise HeadwaterError("the broker has no address")
        for number in range(options.rounds):
            for system, run in (("live", _live), ("replay", _replay)):
                prefix = f"{system}{number}"
                place = FlowPlace(stack.endpoints.bootstrap_servers, prefix, directory / prefix)
                load.make_topics(place.servers, [place.source, place.output, place.changelog])
                flow_load.preload(place.servers, place.source, flow_load.orders(options.messages))
                pace, topic = run(place, options.messages)
                results.paces.setdefault(system, []).append(pace)
                outcome = flows.check(place, TASK, options.messages, topic)
                results.outcomes.setdefault(system, []).append(outcome)
                say(
                    f"round {number + 1}: {system}: {pace:,.0f}/s, {outcome.missing} missing, {outcome.doubled} doubled"
                )
                load.drop_topics(place.servers, place.prefix)
    shutil.rmtree(directory)
    return results


def _live(place: FlowPlace, count: int) -> tuple[float, str]:
    load.begin(place.servers, place.prefix, place.source)
    process = flows.start_headwater(place, TASK)
    try:
        with MeasuredProgress(place.servers, place.prefix, place.source) as progress:
            return progress.follow(process, count, on_first=lambda _done: None).per_second, place.output
    finally:
        processes.stop([process])


def _replay(place: FlowPlace, count: int) -> tuple[float, str]:
    command = [sys.executable, "-m", "headwater.cli", "replay", "--from", "earliest", "--into", "again", "--json"]
    place.directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        cwd=place.directory,
        env=flows.environment(place, TASK),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise HeadwaterError(f"the replay failed: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    if found["progress"]["read"] != count:
        raise HeadwaterError(f"the replay has read {found['progress']['read']} of {count} records")
    return float(found["records_per_second"]), f"{place.output}.again"


def show(results: ReplayResults, console: Console) -> None:
    """Print what was measured."""
    medians = results.as_json()
    ratio = medians["replay"] / medians["live"]
    console.print(f"live {medians['live']:,}/s, replay {medians['replay']:,}/s: {ratio:.2f} x (target {TARGET:.1f} x)")
