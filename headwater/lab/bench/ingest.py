"""The benchmark `ingest`: a canned stream into the ingest topic, by a plain boto3 loop and by a real worker, in one run.

Each run has fresh topics, state and server. Its pace is taken from the first committed positions that are seen to those of
the last records; the output is read and compared with what the stream had.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import msgspec
from confluent_kafka import Consumer, TopicPartition

from headwater.lab import processes
from headwater.lab.bench import canned, load
from headwater.lab.bench.load import PARTITIONS, Input, LoadOutcome
from headwater.lab.bench.measure import START_SECONDS, STILL_SECONDS, Usage, usage
from headwater.lab.bench.systems import SystemPlace, run_module, worker_process
from headwater.lab.processes import LOOPBACK, Process
from headwater.lab.stack import AWS_URL, Stack
from headwater.lab.workers import Workers
from pipeline.errors import HeadwaterError
from pipeline.settings.root import Settings
from pipeline.sources.shard_positions import ShardPosition as Position
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import FENCE_PARTITIONS, Topics

Say = Callable[[str], None]
PLAIN = "plain_boto3"
PLAIN_SHARDS = 8
SHARE, LEAST = 12, 5_000
"""The plain loop gets one n-th of the changes, but not fewer than so many: it is too slow for more."""
IDLE_SHARDS = 64
_position = msgspec.json.Decoder(Position).decode


@dataclass(frozen=True)
class IngestOptions:
    """What to measure."""

    messages: int = 600_000
    rounds: int = 3
    shards: tuple[int, ...] = (1, 8, 64)
    plain: bool = True
    idle_settle: float = 8.0
    """Seconds after the first call of the last shard until idling begins: the pauses have become long by then."""
    idle_seconds: float = 20.0


@dataclass(frozen=True)
class IngestRound:
    """One run."""

    changes_per_s: float
    cpu_s_per_million: float
    server_cpu_s_per_million: float
    """What the canned server has used: it must not be what is measured."""
    outcome: LoadOutcome


@dataclass(frozen=True)
class Idle:
    """What a worker does while nothing comes."""

    calls_per_s: float
    cpu_share: float
    """Of one core."""


@dataclass
class IngestResults:
    """Everything that was measured."""

    broker: str
    messages: int = 0
    rounds: dict[str, list[IngestRound]] = field(default_factory=dict)
    """By `plain_boto3` and by the number of shards."""
    idle: Idle = Idle(0.0, 0.0)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def median(self, key: str) -> IngestRound:
        """Return the medians of a system; missing and doubled are sums."""
        rounds = self.rounds[key]
        return IngestRound(
            statistics.median(turn.changes_per_s for turn in rounds),
            statistics.median(turn.cpu_s_per_million for turn in rounds),
            statistics.median(turn.server_cpu_s_per_million for turn in rounds),
            LoadOutcome(sum(turn.outcome.missing for turn in rounds), sum(turn.outcome.doubled for turn in rounds)),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        shown: dict[str, Any] = {key: self._figures(key) for key in self.rounds if key == PLAIN}
        shown["headwater"] = {key: self._figures(key) for key in self.rounds if key != PLAIN}
        idle = {"idle_calls_per_s": round(self.idle.calls_per_s, 1), "idle_cpu_share": round(self.idle.cpu_share, 4)}
        return shown | idle | {"broker": self.broker}

    def _figures(self, key: str) -> dict[str, float]:
        median = self.median(key)
        return {
            "changes_per_s": round(median.changes_per_s),
            "cpu_s_per_million": round(median.cpu_s_per_million, 2),
        }

    @property
    def failures(self) -> list[str]:
        """What is wrong with the output of a system."""
        outcomes = {key: self.median(key).outcome for key in self.rounds}
        return [
            f"{title(key)}: {missing} missing, {doubled} doubled"
            for key, (missing, doubled) in outcomes.items()
            if missing or doubled
        ]


def title(key: str) -> str:
    """Return what a system is called."""
    return "Plain boto3 loop, 8 shards" if key == PLAIN else f"Headwater, {key} shard{'s' if key != '1' else ''}"


def measure(options: IngestOptions, say: Say) -> IngestResults:
    """Measure all that the options ask for, on a broker of its own."""
    directory = Path(tempfile.mkdtemp(prefix="headwater-bench-"))  # kept when something fails: it holds the logs
    with Stack(directory / "stack", broker="kafka", progress=say) as stack:
        if stack.endpoints is None:
            raise HeadwaterError("the broker has no address")
        results = IngestResults(stack.endpoints.broker, options.messages)
        servers, surroundings = stack.endpoints.bootstrap_servers, stack.endpoints.environment()
        _Bench(servers, surroundings, directory, options, results, say).run()
    shutil.rmtree(directory)
    return results


class _Bench:
    """The runs on one broker."""

    def __init__(
        self,
        servers: str,
        surroundings: Mapping[str, str],
        directory: Path,
        options: IngestOptions,
        results: IngestResults,
        say: Say,
    ) -> None:
        self._servers, self._surroundings, self._directory = servers, surroundings, directory
        self._options, self._results, self._say = options, results, say
        self._runs = 0

    def run(self) -> None:
        """Run rounds of all systems by turns, then let a worker idle."""
        keys = [PLAIN] * self._options.plain + [str(shards) for shards in self._options.shards]
        self._results.rounds = {key: [] for key in keys}
        for number in range(self._options.rounds):
            turn = number % len(keys)
            for key in keys[turn:] + keys[:turn]:
                one = self._round(key)
                self._results.rounds[key].append(one)
                self._say(
                    f"round {number + 1}: {title(key)}: {one.changes_per_s:,.0f}/s, "
                    f"{one.cpu_s_per_million:.1f} s CPU a million ({one.server_cpu_s_per_million:.1f} the server), "
                    f"{one.outcome.missing} missing, {one.outcome.doubled} doubled"
                )
        self._say(f"idle: {IDLE_SHARDS} shards")
        self._results.idle = self._idle()

    def _round(self, key: str) -> IngestRound:
        shards, count = int(key) if key != PLAIN else PLAIN_SHARDS, self._options.messages
        if key == PLAIN:
            count = max(count // SHARE, min(count, LEAST))
        start = self._start_plain if key == PLAIN else self._start_worker
        each = count // shards
        with self._running(start, shards, each) as (place, server, process):
            with IngestProgress(place.servers, f"{place.prefix}.shards") as progress:
                pace = progress.follow(process, server, each * shards)
            given = Input([canned.event_id(shard, number) for shard in range(shards) for number in range(each)])
            found = [event_id_of(value) for value in load.read(place.servers, place.source)]
            return IngestRound(*pace, load.compare(found, given))

    def _idle(self) -> Idle:
        with self._running(self._start_worker, IDLE_SHARDS, 0) as (_, server, process):
            processes.wait_until_ready(
                process, lambda: _calls(server).get("GetRecords", 0) >= IDLE_SHARDS, seconds=START_SECONDS
            )
            time.sleep(self._options.idle_settle)
            began, calls, used = time.monotonic(), _calls(server), usage(process.pid)
            time.sleep(self._options.idle_seconds)
            seconds = time.monotonic() - began
            calls_then, used_then = _calls(server), usage(process.pid)
            return Idle(
                (sum(calls_then.values()) - sum(calls.values())) / seconds, (used_then.cpu - used.cpu) / seconds
            )

    @contextmanager
    def _running(
        self, start: Callable[[SystemPlace, str], Process], shards: int, records: int
    ) -> Iterator[tuple[SystemPlace, Process, Process]]:
        """Make topics, start a server and a system; stop them and drop the topics."""
        self._runs += 1
        prefix = f"bench{self._runs}"
        place = SystemPlace(self._servers, prefix, self._directory / prefix)
        settings = Settings.model_validate({"prefix": prefix, "partitions": PARTITIONS})
        ensure(admin({"bootstrap.servers": self._servers}), Topics(settings).all(), 1)
        started: list[Process] = []
        try:
            started.append(server := _serve(place, shards, records))
            started.append(process := start(place, server.address))
            yield place, server, process
        finally:
            processes.stop(started)
            load.drop_topics(place.servers, place.prefix)

    def _environment(self, url: str) -> dict[str, str]:
        surroundings = self._surroundings
        return {**surroundings, **{name: url for name in surroundings if name.startswith(AWS_URL)}}

    def _start_plain(self, place: SystemPlace, url: str) -> Process:
        arguments = [place.servers, place.prefix, place.source, f"{place.prefix}.shards", url]
        return run_module(place, "headwater.lab.bench.plain_boto3", arguments, self._environment(url))

    def _start_worker(self, place: SystemPlace, url: str) -> Process:
        """Start a worker with the agent ingest; but for the names, all settings are the defaults."""
        environment = {
            **self._environment(url),
            "HEADWATER_AGENTS": '["ingest"]',
            "HEADWATER_PARTITIONS": str(PARTITIONS),
            "HEADWATER_PREFIX": place.prefix,
            "HEADWATER_SOURCES": json.dumps([{"tables": [canned.TABLE]}]),
        }
        return worker_process(Workers(1, place.directory, environment))


class Positions:
    """What the shards topic says: how many changes the positions stand for."""

    def __init__(self) -> None:
        self._done: dict[bytes, int] = {}

    def take(self, key: bytes, value: bytes) -> None:
        """Take over a record of the topic."""
        after = None if key.endswith(b"/") else _position(value).after
        if after is not None:
            self._done[key] = canned.number_of(after) + 1

    @property
    def done(self) -> int:
        """The number of changes."""
        return sum(self._done.values())


class IngestProgress:
    """Reads the committed positions."""

    def __init__(self, servers: str, topic: str) -> None:
        self._positions = Positions()
        self._consumer = Consumer(
            {"bootstrap.servers": servers, "group.id": f"{topic}.progress", "enable.auto.commit": False}
            | {"isolation.level": "read_committed", "fetch.wait.max.ms": 100}
        )
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(FENCE_PARTITIONS)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._consumer.close()

    def done(self) -> int:
        """Wait a moment for news; return how many changes were committed."""
        for message in [self._consumer.poll(0.1), *self._consumer.consume(1_000, 0)]:
            if message is not None and message.error() is None:
                self._positions.take(cast("bytes", message.key()), cast("bytes", message.value()))
        return self._positions.done

    def follow(self, process: Process, server: Process, end: int) -> tuple[float, float, float]:
        """Return changes a second, and seconds of CPU a million of the process and of the server, up to `end` changes."""
        read = partial(_Point.now, process.pid, server.pid)
        first, last, moved = None, 0, time.monotonic()
        while True:
            done = self.done()
            if done > last:
                first, last, moved = first or read(done), done, time.monotonic()
            if first is not None and done >= end:
                return read(done).since(first)
            if not process.alive() or time.monotonic() - moved > STILL_SECONDS:
                why = "ended" if not process.alive() else f"makes no progress for {STILL_SECONDS:.0f} s"
                raise HeadwaterError(f"{process.name} {why} at {done} of {end} changes", hint=f"less {process.log}")


@dataclass(frozen=True)
class _Point:
    """Where a run is at a moment."""

    at: float
    done: int
    process: Usage
    server: Usage

    @classmethod
    def now(cls, process: int, server: int, done: int) -> _Point:
        return cls(time.monotonic(), done, usage(process), usage(server))

    def since(self, first: _Point) -> tuple[float, float, float]:
        count, seconds = self.done - first.done, self.at - first.at
        if not count:  # all of it in one step: too little to measure
            return 0.0, 0.0, 0.0
        million = count / 1e6
        return (
            count / seconds,
            (self.process.cpu - first.process.cpu) / million,
            (self.server.cpu - first.server.cpu) / million,
        )


def event_id_of(value: bytes) -> bytes:
    """Return the event ID of a change on the ingest topic."""
    at = value.index(b'"eventID":"') + len(b'"eventID":"')
    return value[at : at + 32]


def _serve(place: SystemPlace, shards: int, records: int) -> Process:
    place.directory.mkdir(parents=True, exist_ok=True)
    port = processes.free_port()
    server = processes.start(
        "canned",
        [sys.executable, "-m", canned.__name__, str(port), str(shards), str(records)],
        log=place.directory / "canned.log",
        address=f"http://{LOOPBACK}:{port}",
        environment={},
        detached=False,
    )
    processes.wait_until_ready(server, lambda: processes.listens(LOOPBACK, port), seconds=START_SECONDS)
    return server


def _calls(server: Process) -> dict[str, int]:
    connection = HTTPConnection(server.address.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", "/")
        return cast("dict[str, int]", json.loads(connection.getresponse().read()))
    finally:
        connection.close()
