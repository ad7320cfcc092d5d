"""The benchmark `dedup`: the same deduplication by all systems, in one run, on one broker, on one machine.

Each run has fresh topics, state and group. Its input is preloaded; its end is when the committed offsets have reached
the input's end; its pace is taken from the first progress that is seen, so that start-up does not count.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headwater.lab import processes
from headwater.lab.bench import extras as alone
from headwater.lab.bench import load, systems
from headwater.lab.bench.load import Input, LoadOutcome
from headwater.lab.bench.measure import SETTLE, MeasuredProgress, usage
from headwater.lab.bench.standstill import standstill
from headwater.lab.bench.systems import System, SystemPlace
from headwater.lab.stack import Stack
from pipeline.errors import HeadwaterError

Say = Callable[[str], None]


@dataclass(frozen=True)
class DedupOptions:
    """What to measure."""

    messages: int = 600_000
    rounds: int = 3
    peers: bool = False
    extras: bool = True
    """Latency, recovery, start-up and standstill of Headwater, exactly once."""
    growth: bool = False
    """Throughput with ten million IDs in the table: takes some minutes."""
    recovery_ids: int = 2_000_000
    latency_seconds: float = 20.0
    latency_warm_up: float = 3.0
    standstill_rounds: int = 3
    only: tuple[str, ...] = ()
    """Keys of systems; empty: all."""


@dataclass(frozen=True)
class DedupRound:
    """One run of one system."""

    records_per_s: float
    cpu_s_per_million: float
    rss_mib: float
    outcome: LoadOutcome


@dataclass
class DedupResults:
    """Everything that was measured."""

    broker: str
    rounds: dict[str, list[DedupRound]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Systems that could not run, and why."""
    extras: dict[str, float] = field(default_factory=dict)
    growth: alone.Growth | None = None
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    messages: int = 0

    def median(self, key: str) -> DedupRound:
        """Return the medians of a system; missing and doubled are sums."""
        rounds = self.rounds[key]
        return DedupRound(
            statistics.median(turn.records_per_s for turn in rounds),
            statistics.median(turn.cpu_s_per_million for turn in rounds),
            statistics.median(turn.rss_mib for turn in rounds),
            LoadOutcome(sum(turn.outcome.missing for turn in rounds), sum(turn.outcome.doubled for turn in rounds)),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        shown: dict[str, Any] = {}
        for key in self.rounds:
            median = self.median(key)
            shown[key] = {
                "records_per_s": round(median.records_per_s),
                "cpu_s_per_million": round(median.cpu_s_per_million, 2),
                "rss_mib": round(median.rss_mib),
            }
        if self.extras:
            shown[alone.SYSTEM] = shown.get(alone.SYSTEM, {}) | self.extras
        if self.growth:
            shown["growth"] = {"at_100k": round(self.growth.at_100k), "at_10m": round(self.growth.at_10m)}
        return shown | {"broker": self.broker}

    @property
    def failures(self) -> list[str]:
        """What is wrong with the output of a system that promises that nothing is."""
        found = []
        for key in self.rounds:
            missing, doubled = self.median(key).outcome.missing, self.median(key).outcome.doubled
            promised = missing or (doubled and "exactly" in self.titles[key])
            if promised:
                found.append(f"{self.titles[key]}: {missing} missing, {doubled} doubled")
        return found


def run(options: DedupOptions, say: Say) -> dict[str, Any]:
    """Measure, and return the object that `--json` prints."""
    return measure(options, say).as_json()


def measure(options: DedupOptions, say: Say) -> DedupResults:
    """Measure all that the options ask for, on a broker of its own."""
    directory = Path(tempfile.mkdtemp(prefix="headwater-bench-"))  # kept when something fails: it holds the logs
    with Stack(directory / "stack", broker="kafka", progress=say) as stack:
        if stack.endpoints is None:
            raise HeadwaterError("the broker has no address")
        results = DedupResults(stack.endpoints.broker, messages=options.messages)
        _Bench(stack.endpoints.bootstrap_servers, directory, options, results, say).run()
    shutil.rmtree(directory)
    return results


class _Bench:
    """The runs on one broker."""

    def __init__(self, servers: str, directory: Path, options: DedupOptions, results: DedupResults, say: Say) -> None:
        self._servers, self._directory = servers, directory
        self._options, self._results, self._say = options, results, say
        self._runs = 0
        self._inputs: dict[int, Input] = {}
        self._idle: dict[str, float] = {}

    def run(self) -> None:
        """Run rounds of all systems by turns, then measure Headwater alone."""
        chosen = self._choose()
        for number in range(self._options.rounds):
            turn = number % len(chosen) if chosen else 0
            for system in chosen[turn:] + chosen[:turn]:
                one = self._round(system)
                self._results.rounds.setdefault(system.key, []).append(one)
                self._say(
                    f"round {number + 1}: {system.title}: {one.records_per_s:,.0f}/s, "
                    f"{one.cpu_s_per_million:.1f} s CPU a million, {one.rss_mib:.0f} MiB, "
                    f"{one.outcome.missing} missing, {one.outcome.doubled} doubled"
                )
        rounds = self._results.rounds
        self._results.rounds = {key: rounds[key] for key in self._results.titles if key in rounds}
        if self._options.extras:
            self._say("latency at 5,000/s")
            self._results.extras |= alone.latency(
                self._place(), self._options.latency_seconds, self._options.latency_warm_up
            )
            self._say(f"recovery of {self._options.recovery_ids:,} IDs, start-up")
            self._results.extras |= alone.recovery(self._place(), self._options.recovery_ids)
            self._say("standstill while a worker joins and leaves, at 5,000/s")
            self._results.extras |= standstill(self._place(), self._say, self._options.standstill_rounds)
        if self._options.growth:
            self._results.growth = alone.growth(self._place, self._say)

    def _choose(self) -> list[System]:
        chosen = []
        for system in systems.ours() + (systems.peers() if self._options.peers else []):
            if self._options.only and system.key not in self._options.only:
                continue
            try:
                system.prepare(self._say)
            except HeadwaterError as error:
                self._results.left_out[system.title] = error.message
                self._say(f"left out: {system.title}: {error.message}")
            else:
                self._results.titles[system.key] = system.title
                chosen.append(system)
        return chosen

    def _place(self) -> SystemPlace:
        self._runs += 1
        prefix = f"bench{self._runs}"
        return SystemPlace(self._servers, prefix, self._directory / prefix)

    def _round(self, system: System) -> DedupRound:
        if system.key not in self._idle:
            self._idle[system.key] = self._cpu_until_ready(system)
        place, count = self._place(), system.messages(self._options.messages)
        given = self._inputs.setdefault(count, load.changes(count, seed=count))
        load.make_topics(place.servers, [place.source, place.output, place.changelog])
        load.preload(place.servers, place.source, given)
        process = system.start(place)
        try:
            with MeasuredProgress(place.servers, place.prefix, place.source) as progress:
                pace = progress.follow(process, count)
            used = usage(process.pid)
        finally:
            processes.stop([process])
        outcome = load.check(place.servers, place.output, given)
        load.drop_topics(place.servers, place.prefix)
        cpu = max(0.0, used.cpu - self._idle[system.key]) / count * 1e6
        return DedupRound(pace.per_second, cpu, used.peak_mib, outcome)

    def _cpu_until_ready(self, system: System) -> float:
        place = self._place()
        load.make_topics(place.servers, [place.source, place.output, place.changelog])
        process = system.start(place)
        try:
            with MeasuredProgress(place.servers, place.prefix, place.source) as progress:
                progress.wait_for_assignment(process)
            time.sleep(SETTLE)
            return usage(process.pid).cpu
        finally:
            processes.stop([process])
            load.drop_topics(place.servers, place.prefix)
