"""The benchmark `mirror`: a sink topic copied to another cluster, by Headwater's worker and by a plain loop, in one run.

Both clusters are one broker on this machine. The input is preloaded once; each run has a group, a topic there and state
of its own. Progress is what the other cluster knows; pace is taken from the first of it that is seen.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from rich.console import Console

from headwater.lab import kafka, processes
from headwater.lab.bench import load, systems
from headwater.lab.bench.load import NOISE, PARTITIONS, LoadOutcome
from headwater.lab.bench.measure import MeasuredPace, MeasuredProgress, usage
from headwater.lab.bench.systems import SystemPlace
from headwater.lab.kafka import Broker
from headwater.lab.processes import Process
from headwater.lab.workers import Workers
from pipeline.errors import HeadwaterError
from pipeline.topics.admin import admin

Say = Callable[[str], None]
VALUE_BYTES = 1_000
PREFIX, SINK = "bench", "orders"
SOURCE = f"{PREFIX}.sink.{SINK}"
TARGET = 0.8
"""Of the plain loop's pace."""


@dataclass(frozen=True)
class MirrorOptions:
    """What to measure."""

    messages: int = 400_000
    rounds: int = 3


@dataclass(frozen=True)
class MirrorRound:
    """One run of one system."""

    per_s: float
    cpu_us: float
    outcome: LoadOutcome


@dataclass
class MirrorResults:
    """Everything that was measured, by system: headwater, limit."""

    rounds: dict[str, list[MirrorRound]] = field(default_factory=dict)

    def per_s(self, system: str) -> float:
        """Return the median pace of a system, in records a second."""
        return statistics.median(turn.per_s for turn in self.rounds[system])

    def as_json(self) -> dict[str, int]:
        """Return the object that `--json` prints."""
        return {system: round(self.per_s(system)) for system in self.rounds}

    @property
    def failures(self) -> list[str]:
        """What is wrong with the copies."""
        sums = {
            name: (sum(turn.outcome.missing for turn in rounds), sum(turn.outcome.doubled for turn in rounds))
            for name, rounds in self.rounds.items()
        }
        return [
            f"{name}: {missing} missing, {doubled} doubled"
            for name, (missing, doubled) in sums.items()
            if missing or doubled
        ]


def measure(options: MirrorOptions, say: Say) -> MirrorResults:
    """Measure on two brokers of their own."""
    directory = Path(tempfile.mkdtemp(prefix="headwater-bench-"))  # kept when something fails: it holds the logs
    brokers = [kafka.apache_kafka(directory / name, "for the benchmark", say) for name in ("here", "there")]
    say(f"starting two of {brokers[0].name}")
    started = [broker.start(detached=False) for broker in brokers]
    try:
        for broker, process in zip(brokers, started, strict=True):
            broker.wait_until_ready(process)
        results = _run(options, directory, brokers[0], brokers[1], say)
    finally:
        processes.stop(started)
    shutil.rmtree(directory)
    return results


def _run(options: MirrorOptions, directory: Path, here: Broker, there: Broker, say: Say) -> MirrorResults:
    results = MirrorResults()
    load.make_topics(here.address, [SOURCE])
    say(f"writing {options.messages:,} records")
    preload(here.address, options.messages)
    cluster = admin({"bootstrap.servers": here.address}).list_topics(timeout=10).cluster_id
    for number in range(options.rounds):
        for system, start in (("limit", _limit), ("headwater", _headwater)):
            name = f"{system}{number}"
            place = SystemPlace(here.address, name, directory / name)
            group = f"{PREFIX}.mirror.{name}.{cluster}" if system == "headwater" else name
            load.make_topics(there.address, [name])
            process = start(place, there.address)
            try:
                with MeasuredProgress(there.address, group, name) as progress:
                    pace, cpu = _follow(progress, process, options.messages)
            finally:
                processes.stop([process])
            one = MirrorRound(pace.per_second, cpu, check(there.address, name, options.messages))
            results.rounds.setdefault(system, []).append(one)
            say(f"round {number + 1}: {system}: {one.per_s:,.0f}/s, {one.cpu_us:.1f} us CPU a record")
            load.drop_topics(there.address, name)
    return results


def _follow(progress: MeasuredProgress, process: Process, count: int) -> tuple[MeasuredPace, float]:
    """Return the pace, and the CPU a record, in microseconds, from the first progress to the end."""
    before: list[float] = []
    pace = progress.follow(process, count, on_first=lambda done: before.extend((usage(process.pid).cpu, done)))
    cpu = usage(process.pid).cpu - before[0] if before else 0.0
    return pace, cpu / max(1, pace.records) * 1e6


def preload(servers: str, count: int) -> None:
    """Write records of 1 KB with the six headers of a sink topic, round the partitions."""
    producer = Producer(
        {"bootstrap.servers": servers, "linger.ms": 20, "batch.size": 1_000_000, "compression.type": "zstd"}
        | {"queue.buffering.max.messages": 200_000}
    )
    for number in range(count):
        at = number * 37 % (len(NOISE) - VALUE_BYTES // 2)
        value = (b'{"number":%d,"noise":"%s' % (number, NOISE[at : at + VALUE_BYTES // 2])).ljust(VALUE_BYTES, b"x")
        headers: Any = [
            ("event_id", b"%032x" % number),
            ("table", b"orders"),
            ("op", b"u"),
            ("source", b"dynamodb-stream"),
            ("ts_us", b"1764000000000000"),
            ("sequence", b"%021d" % number),
        ]
        while True:
            try:
                producer.produce(SOURCE, value, b"o-%010d" % number, number % PARTITIONS, headers=headers)
            except BufferError:
                producer.poll(0.1)
            else:
                break
    if left := producer.flush(120):
        raise HeadwaterError(f"{SOURCE}: {left} records of the input could not be written")


def check(servers: str, topic: str, count: int) -> LoadOutcome:
    """Compare the event IDs that are there with those that were written."""
    found = [dict(headers)["event_id"] for headers in load.read_headers(servers, topic)]
    return LoadOutcome(count - len(set(found)), len(found) - len(set(found)))


def _limit(place: SystemPlace, other: str) -> Process:
    arguments = [place.servers, place.prefix, SOURCE, other, place.prefix]
    return systems.run_module(place, "headwater.lab.bench.plain_mirror", arguments)


def _headwater(place: SystemPlace, other: str) -> Process:
    mirror = {"name": place.prefix, "bootstrap_servers": other, "topic": place.prefix, "replication_factor": 1}
    environment = {
        "HEADWATER_AGENTS": json.dumps([f"mirror.{place.prefix}"]),
        "HEADWATER_FLOWS": json.dumps([{"name": "bench", "to": SINK}]),
        "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": place.servers,
        "HEADWATER_KAFKA__REPLICATION_FACTOR": "1",
        "HEADWATER_MIRRORS": json.dumps([mirror]),
        "HEADWATER_PARTITIONS": str(PARTITIONS),
        "HEADWATER_PREFIX": PREFIX,
    }
    return systems.worker_process(Workers(1, place.directory, environment))


def show(results: MirrorResults, console: Console) -> None:
    """Print the paces and their ratio."""
    for system, rounds in results.rounds.items():
        paces = ", ".join(f"{turn.per_s:,.0f}" for turn in rounds)
        cpu = statistics.median(turn.cpu_us for turn in rounds)
        console.print(f"{system}: {results.per_s(system):,.0f}/s ({paces}), {cpu:.1f} us CPU a record", highlight=False)
    if results.per_s("limit"):
        ratio = results.per_s("headwater") / results.per_s("limit")
        console.print(f"headwater over the plain loop: {ratio:.2f} (target {TARGET})", highlight=False)
    for failure in results.failures:
        console.print(f"[red]wrong copy: {failure}[/red]")
