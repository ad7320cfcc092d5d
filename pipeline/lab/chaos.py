"""Chaos: workers and broker are hurt under load, by a seeded schedule, and the output is compared with the input."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from confluent_kafka import Producer

from pipeline.errors import FatalError
from pipeline.lab.demo import Recorder, lag
from pipeline.lab.killer import POINTS
from pipeline.lab.stack import Stack
from pipeline.lab.workers import Worker, Workers
from pipeline.settings import Settings
from pipeline.topics import Topics, admin, ensure

FAULTS = (
    "kill",  # SIGKILL
    "freeze",  # SIGSTOP beyond the session time-out, then SIGCONT: a zombie
    "terminate",  # SIGTERM
    "join",  # one more worker, or one that leaves for good
    *(f"kill at {point}" for point in POINTS),
    "kill in recovery",
    "restart broker",  # SIGKILL of the broker, in the middle of transactions
    "lose state",  # the state directory is gone after a kill
)
KEYS = 500
DUPLICATES = 0.2
SESSION = 6.0
PARTITIONS = 4
MOST_WORKERS = 3
SETTLE = (3.0, 7.0)
"""Seconds between two faults."""
IDLE_LIMIT = 120.0
TICK = 0.1


@dataclass(frozen=True)
class Options:
    """What the chaos is asked to do."""

    directory: Path
    faults: int = 10
    seed: int = 1
    rate: int = 5_000
    """Changes a second."""
    guarantee: str = "exactly_once"


@dataclass
class Report:
    """The outcome; printed by `--json`."""

    faults: dict[str, int] = field(default_factory=dict)
    input: int = 0
    output: int = 0
    lost: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    fenced: int = 0
    aborted: int = 0
    seconds: float = 0.0
    seed: int = 0

    @property
    def ok(self) -> bool:
        """Whether every change came out once, in order."""
        return not (self.lost or self.duplicated or self.out_of_order)

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class Load:
    """Changes with duplicates, at a rate, into the ingest topic. Item k of K goes through versions 1, 2, 3, ..."""

    def __init__(self, conf: dict[str, Any], topic: str, rate: int, seed: int) -> None:
        self._producer = Producer({**conf, "enable.idempotence": True, "linger.ms": 5, "message.timeout.ms": 300_000})
        self._topic, self._rate, self._random = topic, rate, random.Random(seed)  # noqa: S311
        self._versions = [0] * KEYS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.failed = 0

    @property
    def written(self) -> int:
        """The number of different changes."""
        return sum(self._versions)

    def __contains__(self, change: tuple[int, int]) -> bool:
        key, version = change
        return 0 <= key < KEYS and 0 < version <= self._versions[key]

    def start(self) -> None:
        """Start to write."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait until the broker has everything."""
        self._stop.set()
        self._thread.join()
        left = self._producer.flush(120)
        if left or self.failed:
            raise FatalError(f"the load itself was lost: {left + self.failed} records were not delivered")

    def _run(self) -> None:
        began, made = time.monotonic(), 0
        while not self._stop.wait(0.005):
            while made < (time.monotonic() - began) * self._rate:
                made += 1
                self._write_one()
            self._producer.poll(0)

    def _write_one(self) -> None:
        key = self._random.randrange(KEYS)
        last = self._versions[key]
        if last and self._random.random() < DUPLICATES:
            version = self._random.randint(max(1, last - 50), last)
        else:
            version = self._versions[key] = last + 1
        value = b'{"eventID":"%08x%024x","k":%d,"v":%d,"pad":"%s"}' % (key, version, key, version, b"x" * 400)
        while True:
            try:
                self._producer.produce(self._topic, value, b"k%d" % key, on_delivery=self._report)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def _report(self, error: Any, _message: Any) -> None:
        self.failed += error is not None


class Chaos:
    """One run."""

    def __init__(self, options: Options, stack: Stack, say: Callable[[str], None]) -> None:
        if stack.endpoints is None:
            raise FatalError("the stack is not up")
        self._options, self._stack, self._say = options, stack, say
        self._random = random.Random(options.seed)  # noqa: S311 - a schedule that can be had again
        prefix = f"chaos-{options.seed}"
        settings = Settings.model_validate({"prefix": prefix, "partitions": PARTITIONS})
        self.topics = Topics(settings)
        self.conf: dict[str, Any] = {"bootstrap.servers": stack.endpoints.bootstrap_servers}
        ensure(admin(self.conf), self.topics.all(), 1)
        environment = {
            **os.environ,
            **stack.endpoints.environment(),
            "HEADWATER_PREFIX": prefix,
            "HEADWATER_PARTITIONS": str(PARTITIONS),
            "HEADWATER_AGENTS": '["deduplicate"]',
            "HEADWATER_PROCESSING_GUARANTEE": options.guarantee,
            "HEADWATER_KAFKA__SESSION_TIMEOUT": str(SESSION),
        }
        self.group = prefix
        self.workers = Workers(2, options.directory / "workers", environment, module="pipeline.lab.chaos_worker")
        self.load = Load(self.conf, self.topics.ingest, options.rate, options.seed)
        self.done: Counter[str] = Counter()

    def run(self) -> Report:
        """Load, hurt, wait until everything has come through, compare."""
        began = time.monotonic()
        with Recorder(self.conf, self.topics.raw) as raw, Recorder(self.conf, self.topics.ingest) as ingest:
            self.workers.start()
            try:
                self._wait(lambda: len(raw) > 0 or self._started(), raw)
                self.load.start()
                self._hurt(raw)
                self.load.stop()
                self._wait(lambda: self._through(raw, ingest), raw)
            finally:
                self.workers.stop()
            return self._compare(raw, time.monotonic() - began)

    def _started(self) -> bool:
        return all(
            "Ready" in worker.log.read_text(errors="replace") for worker in self.workers.all if worker.log.exists()
        )

    def _hurt(self, raw: Recorder) -> None:
        schedule = [FAULTS[n % len(FAULTS)] for n in range(self._options.faults)]
        self._random.shuffle(schedule)
        for fault in schedule:
            self._rest(self._random.uniform(*SETTLE))
            self._say(f"{fault} ({len(raw):,} of {self.load.written:,} changes are out)")
            self._do(fault)
            self.done[fault] += 1
        self._rest(SETTLE[1])
        self._wait(lambda: not self.workers.frozen, raw)

    def _do(self, fault: str) -> None:
        worker = self._random.choice([w for w in self.workers.all if w.alive()] or self.workers.all)
        if fault == "kill":
            worker.signal(signal.SIGKILL)
        elif fault == "freeze":
            self.workers.freeze(self.workers.all.index(worker), SESSION + self._random.uniform(2, 6))
        elif fault == "terminate":
            worker.signal(signal.SIGTERM)
        elif fault == "join":
            if len(self.workers.all) < MOST_WORKERS:
                self.workers.add()
            else:
                self.workers.all.remove(worker)
                worker.signal(signal.SIGTERM)
        elif fault.startswith("kill at "):
            _state(worker).with_name(f"{_state(worker).name}.point").write_text(fault.removeprefix("kill at "))
        elif fault == "kill in recovery":
            self._kill_in_recovery(worker)
        elif fault == "restart broker":
            self._stack.kill_broker()
            self._stack.start_broker()
        elif fault == "lose state":
            self._lose_state(worker)

    def _lose_state(self, worker: Worker) -> None:
        worker.signal(signal.SIGKILL)
        self._until(lambda: not worker.alive())
        shutil.rmtree(_state(worker), ignore_errors=True)

    def _kill_in_recovery(self, worker: Worker) -> None:
        self._lose_state(worker)
        worker.start()
        # A recovery begins when the partitions have come; the store is opened first.
        self._until(lambda: any(_state(worker).glob("*.db")) or not worker.alive())
        worker.signal(signal.SIGKILL)

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + IDLE_LIMIT
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._watch()
            time.sleep(TICK)

    def _watch(self) -> None:
        for worker in self.workers.all:
            worker.most_starts = 10 + 3 * self._options.faults
        self.workers.watch()

    def _wait(self, condition: Callable[[], bool], raw: Recorder) -> None:
        moved, before = time.monotonic(), -1
        while not condition():
            self._watch()
            if len(raw) != before:
                moved, before = time.monotonic(), len(raw)
            if time.monotonic() - moved > IDLE_LIMIT:
                raise FatalError(
                    f"nothing has moved for {IDLE_LIMIT:.0f} s: {len(raw):,} of {self.load.written:,} changes are out",
                    hint=f"less {self.workers.all[0].log}",
                )
            time.sleep(TICK)

    def _through(self, raw: Recorder, ingest: Recorder) -> bool:
        if len(raw) < self.load.written:
            return False
        return lag(self.conf, self.group, {self.topics.ingest: ingest.ends}) == 0

    def _compare(self, raw: Recorder, seconds: float) -> Report:
        report = Report(faults=dict(self.done), input=self.load.written, output=len(raw), seed=self._options.seed)
        last = [0] * KEYS
        seen: set[tuple[int, int]] = set()
        for record in raw:
            change = json.loads(cast("bytes", record.value()))
            key, version = change["k"], change["v"]
            if (key, version) in seen or (key, version) not in self.load:
                report.duplicated += 1
            elif version < last[key]:
                report.out_of_order += 1
            seen.add((key, version))
            last[key] = max(last[key], version)
        report.lost = report.input - len(seen)
        logs = [path.read_text(errors="replace") for path in (self._options.directory / "workers").glob("*.log")]
        report.aborted = sum(log.count("slice aborted") for log in logs)
        words = ("ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "FENCED", "no member of the group", "partitions were lost")
        report.fenced = sum(any(word in line for word in words) for log in logs for line in log.splitlines())
        report.seconds = round(seconds, 1)
        return report


def _state(worker: Worker) -> Path:
    return worker.directory / f"{worker.name}.state"


def run(options: Options, say: Callable[[str], None]) -> Report:
    """Run the chaos on an Apache Kafka of its own; raise HeadwaterError when it cannot be run."""
    with Stack(options.directory / "stack", broker="kafka", progress=say) as stack:
        return Chaos(options, stack, say).run()
