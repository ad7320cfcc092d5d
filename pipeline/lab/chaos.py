"""Chaos: workers and broker are hurt under load, by a seeded schedule, and the output is compared with the input."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from confluent_kafka import Producer

from pipeline.errors import FatalError
from pipeline.lab.chaos_report import SECTION, Options, Report, section
from pipeline.lab.faults import SESSION, Faults
from pipeline.lab.machine import describe
from pipeline.lab.page import put_section
from pipeline.lab.recorder import Recorder, lag
from pipeline.lab.stack import Stack
from pipeline.settings import Settings
from pipeline.topics import Topics, admin, ensure

KEYS = 500
DUPLICATES = 0.2
PARTITIONS = 4
SETTLE = (1.5, 4.5)
"""Seconds between two faults."""
IDLE_LIMIT = 120.0
TICK = 0.1


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
        self._logs = options.directory / "workers"
        self.faults = Faults(stack, self._logs, environment, self._random)
        self.workers = self.faults.workers
        self.load = Load(self.conf, self.topics.ingest, options.rate, options.seed)
        self.done: Counter[str] = Counter()

    def run(self) -> Report:
        """Load, hurt, wait until everything has come through, compare."""
        began = time.monotonic()
        with Recorder(self.conf, self.topics.raw) as raw, Recorder(self.conf, self.topics.ingest) as ingest:
            try:
                self.workers.start()
                self._wait(lambda: len(raw) > 0 or self._started(), raw)
                self.load.start()
                self._hurt(raw)
                self.load.stop()
                self._wait(lambda: self._through(raw, ingest), raw)
            finally:
                self.faults.close()
            return self._compare(raw, time.monotonic() - began)

    def _started(self) -> bool:
        return all(
            "Ready" in worker.log.read_text(errors="replace") for worker in self.workers.all if worker.log.exists()
        )

    def _hurt(self, raw: Recorder) -> None:
        names = self.faults.names
        schedule = [names[n % len(names)] for n in range(self._options.faults)]
        self._random.shuffle(schedule)
        for fault in schedule:
            self._rest(self._random.uniform(*SETTLE))
            self._say(f"{fault} ({len(raw):,} of {self.load.written:,} changes are out)")
            self.faults.do(fault)
            self.done[fault] += 1
        self._rest(SETTLE[1])
        self._wait(lambda: not self.workers.frozen, raw)

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
        report.left_out = self.faults.left_out
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
        logs = [path.read_text(errors="replace") for path in self._logs.glob("*.log")]
        report.aborted = sum(log.count("slice aborted") for log in logs)
        words = ("ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "FENCED", "no member of the group", "partitions were lost")
        report.fenced = sum(any(word in line for word in words) for log in logs for line in log.splitlines())
        report.seconds = round(seconds, 1)
        return report


def run(options: Options, say: Callable[[str], None]) -> Report:
    """Run the chaos on an Apache Kafka of its own; raise HeadwaterError when it cannot be run."""
    began = datetime.now(UTC)
    with Stack(options.directory / "stack", broker="kafka", progress=say) as stack:
        report = Chaos(options, stack, say).run()
        broker = stack.endpoints.broker if stack.endpoints else ""
    if options.page is not None:
        put_section(options.page, SECTION, section(report, options, began, describe(broker)))
        say(f"wrote {options.page}")
    return report
