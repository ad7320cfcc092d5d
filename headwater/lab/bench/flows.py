"""The benchmark `flows`: the same work by Headwater and by peers, in one run, on one broker, on one machine.

Each run has fresh topics, state and group. Its input is preloaded; its end is when the committed offsets have reached the
input's end; its pace is taken from the first progress that is seen, so that start-up does not count.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headwater.lab import processes
from headwater.lab.bench import flow_load, load, systems
from headwater.lab.bench.load import LoadOutcome
from headwater.lab.bench.measure import MeasuredProgress, usage
from headwater.lab.bench.systems import SystemPlace
from headwater.lab.processes import Process
from headwater.lab.stack import Stack
from headwater.lab.workers import Workers
from pipeline.errors import HeadwaterError

Say = Callable[[str], None]
WHERE = {"eventName": ["MODIFY"], "dynamodb": {"NewImage": {"status": {"S": ["paid"]}}}}
CEL = 'op == "u" && after.status == "paid" && after.total > 1.0'
JOIN = {"kind": "join", "table": "customers", "on": "customer_id", "into": "customer"}
SQL = "SELECT id, 2 * CAST(json_extract_string(after, '$.total') AS DECIMAL(38, 2)) AS doubled FROM changes"
TASKS: Mapping[str, dict[str, Any]] = {
    "pass_through": {},
    "pattern_filter": {"where": WHERE},
    "cel_filter": {"where": CEL},
    "join_plain": {"enrich": [JOIN], "envelope": "plain"},
    "sql": {"enrich": [{"kind": "sql", "query": SQL}], "envelope": "plain"},
    "avro": {"envelope": "plain", "format": "avro"},
    "debezium": {"envelope": "debezium"},
}
"""What each flow has beside its name and its sink."""
FILTERS = ("pattern_filter", "cel_filter")
TARGETS = {"pass_through": 80_000, "pattern_filter": 140_000, "join_plain": 42_000, "avro": 28_000}
RATIOS = {"quix": 4.0, "faust": 15.0, "kafka_streams": 1.2}
SINK = "out"


@dataclass(frozen=True)
class FlowOptions:
    """What to measure."""

    messages: int = 300_000
    rounds: int = 3
    peers: bool = True
    tasks: tuple[str, ...] = tuple(TASKS)
    systems: tuple[str, ...] = ()
    """Keys of systems; empty: all."""


@dataclass(frozen=True)
class FlowSystem:
    """A system; `start` gets the place and the task."""

    key: str
    title: str
    start: Callable[[SystemPlace, str], Process]
    prepare: Callable[[Say], None] = lambda say: None
    share: int = 1
    """It gets one n-th of the messages: it is too slow for more."""
    tasks: tuple[str, ...] = tuple(TASKS)


@dataclass(frozen=True)
class FlowRound:
    """One run of one system at one task."""

    per_s: float
    cpu_us: float
    outcome: LoadOutcome


@dataclass
class FlowResults:
    """Everything that was measured."""

    broker: str
    messages: int
    rounds: dict[tuple[str, str], list[FlowRound]] = field(default_factory=dict)
    """By task and system."""
    left_out: dict[str, str] = field(default_factory=dict)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def median(self, task: str, system: str) -> FlowRound | None:
        """Return the medians of a system at a task; missing and doubled are sums."""
        rounds = self.rounds.get((task, system))
        if not rounds:
            return None
        return FlowRound(
            statistics.median(turn.per_s for turn in rounds),
            statistics.median(turn.cpu_us for turn in rounds),
            LoadOutcome(sum(turn.outcome.missing for turn in rounds), sum(turn.outcome.doubled for turn in rounds)),
        )

    def as_json(self) -> dict[str, dict[str, int]]:
        """Return the object that `--json` prints: changes a second by task and system."""
        found: dict[str, dict[str, int]] = {}
        for task, system in self.rounds:
            if (median := self.median(task, system)) is not None:
                found.setdefault(task, {})[system] = round(median.per_s)
        return found

    @property
    def failures(self) -> list[str]:
        """What is wrong with the output of a system that promises that nothing is."""
        found = []
        for task, system in self.rounds:
            median = self.median(task, system)
            if median is not None and (median.outcome.missing or (median.outcome.doubled and system != "faust")):
                found.append(f"{system}, {task}: {median.outcome.missing} missing, {median.outcome.doubled} doubled")
        return found


def all_systems() -> list[FlowSystem]:
    """Return Headwater and the peers."""
    return [
        FlowSystem("headwater", "Headwater, exactly once", start_headwater),
        FlowSystem("quix", "Quix Streams, exactly once", _quix, systems.prepare_quix, share=4),
        FlowSystem("faust", "Textbook Faust, at least once", _faust, share=20),
        FlowSystem(
            "kafka_streams",
            "Kafka Streams, exactly once",
            _kafka_streams,
            systems.prepare_kafka_streams,
            tasks=("pass_through", "pattern_filter"),
        ),
    ]


def measure(options: FlowOptions, say: Say) -> FlowResults:
    """Measure all that the options ask for, on a broker of its own."""
    directory = Path(tempfile.mkdtemp(prefix="headwater-bench-"))  # kept when something fails: it holds the logs
    with Stack(directory / "stack", broker="kafka", progress=say) as stack:
        if stack.endpoints is None:
            raise HeadwaterError("the broker has no address")
        results = FlowResults(stack.endpoints.broker, options.messages)
        _Bench(stack.endpoints.bootstrap_servers, directory, options, results, say).run()
    shutil.rmtree(directory)
    return results


class _Bench:
    """The runs on one broker."""

    def __init__(self, servers: str, directory: Path, options: FlowOptions, results: FlowResults, say: Say) -> None:
        self._servers, self._directory = servers, directory
        self._options, self._results, self._say = options, results, say
        self._runs = 0

    def run(self) -> None:
        """Run rounds of all tasks, in each all systems by turns."""
        chosen = self._choose()
        for number in range(self._options.rounds):
            for task in self._options.tasks:
                for system in (one for one in chosen if task in one.tasks):
                    one = self._round(system, task)
                    self._results.rounds.setdefault((task, system.key), []).append(one)
                    self._say(
                        f"round {number + 1}: {task}: {system.title}: {one.per_s:,.0f}/s, {one.cpu_us:.1f} us CPU, "
                        f"{one.outcome.missing} missing, {one.outcome.doubled} doubled"
                    )

    def _choose(self) -> list[FlowSystem]:
        chosen = []
        for system in all_systems():
            if (self._options.systems and system.key not in self._options.systems) or (
                not self._options.peers and system.key != "headwater"
            ):
                continue
            try:
                system.prepare(self._say)
            except HeadwaterError as error:
                self._results.left_out[system.title] = error.message
                self._say(f"left out: {system.title}: {error.message}")
            else:
                chosen.append(system)
        return chosen

    def _place(self) -> SystemPlace:
        self._runs += 1
        prefix = f"bench{self._runs}"
        return FlowPlace(self._servers, prefix, self._directory / prefix)

    def _round(self, system: FlowSystem, task: str) -> FlowRound:
        place, count = self._place(), self._options.messages // system.share
        load.make_topics(place.servers, [place.source, place.output, place.changelog])
        flow_load.preload(place.servers, place.source, flow_load.orders(count))
        flow_load.preload(place.servers, place.changelog, flow_load.customers())
        load.begin(place.servers, place.prefix, place.source)  # a reference table that is there was made by someone
        process = system.start(place, task)
        try:
            with MeasuredProgress(place.servers, place.prefix, place.source) as progress:
                pace, cpu = _follow(progress, process, count)
        finally:
            processes.stop([process])
        outcome = check(place, task, count)
        load.drop_topics(place.servers, place.prefix)
        return FlowRound(pace.per_second, cpu, outcome)


@dataclass(frozen=True)
class FlowPlace(SystemPlace):
    """Where one run happens."""

    @property
    def source(self) -> str:
        """The topic with the input."""
        return f"{self.prefix}.raw"

    @property
    def output(self) -> str:
        """The sink topic."""
        return f"{self.prefix}.sink.{SINK}"

    @property
    def changelog(self) -> str:
        """The reference topic."""
        return f"{self.prefix}.reference.customers"


def _follow(progress: MeasuredProgress, process: Process, count: int) -> tuple[Any, float]:
    """Return the pace, and the CPU a record, in microseconds, from the first progress to the end."""
    before: list[float] = []
    pace = progress.follow(process, count, on_first=lambda done: before.extend((usage(process.pid).cpu, done)))
    cpu = usage(process.pid).cpu - before[0] if before else 0.0
    return pace, cpu / max(1, count - int(before[1] if before else 0)) * 1e6


def check(place: SystemPlace, task: str, count: int, topic: str = "") -> LoadOutcome:
    """Compare the event IDs on the sink topic, or another one, by their headers, with those that must be there."""
    wanted = {flow_load.event_id(n).encode() for n in range(count) if task not in FILTERS or flow_load.is_wanted(n)}
    found = [dict(headers)["event_id"] for headers in load.read_headers(place.servers, topic or place.output)]
    once = set(found)
    return LoadOutcome(len(wanted - once) + len(once - wanted), len(found) - len(once))


def environment(place: SystemPlace, task: str) -> dict[str, str]:
    """Return what a worker reads, and a command."""
    flow = {"name": "bench", "to": SINK, **TASKS[task]}
    return {
        **os.environ,
        "HEADWATER_AGENTS": '["transform"]',
        "HEADWATER_FLOWS": json.dumps([flow]),
        "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": place.servers,
        "HEADWATER_KAFKA__REPLICATION_FACTOR": "1",
        "HEADWATER_PARTITIONS": "4",
        "HEADWATER_PREFIX": place.prefix,
        "HEADWATER_SCHEMA_REGISTRY__URL": "mock://bench",
    }


def start_headwater(place: SystemPlace, task: str) -> Process:
    """Start a worker."""
    return systems.worker_process(Workers(1, place.directory, environment(place, task)))


def _arguments(place: SystemPlace, task: str) -> list[str]:
    return [place.servers, place.prefix, place.source, place.output, place.changelog, str(place.state), task]


def _quix(place: SystemPlace, task: str) -> Process:
    return systems.run_quix(place, "flows.py", _arguments(place, task))


def _faust(place: SystemPlace, task: str) -> Process:
    return systems.run_module(place, "headwater.lab.bench.faust_flows", _arguments(place, task))


def _kafka_streams(place: SystemPlace, task: str) -> Process:
    return systems.run_java(
        place, "Flows", [place.servers, place.prefix, place.source, place.output, str(place.state), task]
    )
