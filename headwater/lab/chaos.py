"""Chaos: workers, broker and topics are hurt under load, by a seeded schedule, and the output is compared with the input."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import KafkaException

from headwater.lab import chaos_steps
from headwater.lab.chaos_ledger import Ledger, LedgerOutcome, compare, gaps_in, lake_at, letters_in, rows_in
from headwater.lab.chaos_load import Load
from headwater.lab.chaos_report import CALM, MEANING, SECTION, STUCK, ChaosOptions, ChaosReport, section
from headwater.lab.chaos_topics import TRANSACTION_MS, Scene, Sinks
from headwater.lab.faults import ALONE, SESSION, Faults, plan
from headwater.lab.machine import describe
from headwater.lab.page import put_section
from headwater.lab.recorder import Recorder, lag
from headwater.lab.stack import Stack
from pipeline.errors import FatalError, UsageError
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics

PARTITIONS = 4
SINK = "all"
FLOW = {
    "name": "chaos",
    "to": SINK,
    "enrich": [{"kind": "python", "name": chaos_steps.NAME}],
    "reject_limit": 1.0,
}
SETTLE = (1.5, 4.5)
"""Seconds between two faults."""
IDLE_LIMIT = 120.0
TICK = 0.1
LOOK = 1.0
"""Seconds between two looks whether all has come through."""


@dataclass
class Pending:
    """A fault that is not over."""

    fault: str
    began: float
    counts: dict[tuple[str, int], int]
    """What had come out of each partition."""
    over: Callable[[], bool]
    is_over: bool = False


class Chaos:
    """One run."""

    def __init__(self, options: ChaosOptions, stack: Stack, say: Callable[[str], None]) -> None:
        if stack.endpoints is None:
            raise FatalError("the stack is not up")
        self._options, self._stack, self._say = options, stack, say
        self._random = random.Random(options.seed)  # noqa: S311 - a schedule that can be had again
        prefix = f"chaos-{options.seed}"
        settings = Settings.model_validate({"prefix": prefix, "partitions": PARTITIONS, "flows": [FLOW]})
        self.topics = Topics(settings)
        self.conf: dict[str, Any] = {"bootstrap.servers": stack.endpoints.bootstrap_servers}
        ensure(admin(self.conf), self.topics.all(), 1)
        self._lake, slow_file = f"file://{options.directory}/lake", options.directory / "slow"
        environment = {
            **os.environ,
            **stack.endpoints.environment(),
            "HEADWATER_PREFIX": prefix,
            "HEADWATER_PARTITIONS": str(PARTITIONS),
            "HEADWATER_AGENTS": '["deduplicate", "transform", "lake"]',
            "HEADWATER_FLOWS": json.dumps([FLOW]),
            "HEADWATER_MODULES": json.dumps([chaos_steps.__name__]),
            "HEADWATER_ON_ERROR": "dead_letter",
            "HEADWATER_LAKE__URL": self._lake,
            "HEADWATER_LAKE__MAX_AGE": "1",
            "HEADWATER_PROCESSING_GUARANTEE": options.guarantee,
            "HEADWATER_KAFKA__SESSION_TIMEOUT": str(SESSION),
            "HEADWATER_KAFKA__PROPERTIES": json.dumps({"transaction.timeout.ms": TRANSACTION_MS}),
            chaos_steps.SLOW_FILE: str(slow_file),
        }
        self.group = prefix
        self._logs = options.directory / "workers"
        self.faults = Faults(stack, self._logs, environment, self._random)
        self.workers = self.faults.workers
        self.load = Load(self.conf, self.topics.ingest, options.rate, options.seed)
        self.raw, self.ingest = Ledger(self.conf, self.topics.raw), Ledger(self.conf, self.topics.ingest)
        self.sinks = Sinks(self.conf, self.topics.sink(SINK))
        self.letters = Recorder(self.conf, self.topics.dead_letter)
        self.gaps = Recorder(self.conf, self.topics.gaps)
        self.scene = Scene(
            self.conf,
            self.topics,
            self.group,
            self.load,
            self.ingest,
            self.letters,
            self.sinks,
            slow_file,
            self._through,
            self.faults.until,
            lambda condition, _what: self._wait(condition),
        )
        self.faults.add(self.scene)
        self.report = ChaosReport(seed=options.seed)
        self._pending: list[Pending] = []
        self._look_at = 0.0

    def run(self) -> ChaosReport:
        """Load, hurt, wait until everything has come through, compare."""
        began, done = time.monotonic(), Counter[str]()
        schedule = self._schedule()
        with ExitStack() as recorders:
            for recorder in (self.raw, self.ingest, self.letters, self.gaps):
                recorders.enter_context(recorder)
            self.sinks.begin()
            recorders.callback(self.sinks.end)
            try:
                self.workers.start()
                self._wait(self._started)
                self.load.start()
                self._wait(lambda: len(self._counts()) == 2 * PARTITIONS)
                for fault in schedule:
                    self._hurt(fault)
                    done[fault] += 1
                self._rest(SETTLE[1])
                self._wait(lambda: not (self.workers.frozen or self._pending))
                self.load.stop()
                self._wait(self._through)
            finally:
                self.faults.close()
        self.report.faults, self.report.left_out = dict(done), self.faults.left_out
        self._compare()
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    def _schedule(self) -> list[str]:
        only = self._options.only or tuple(MEANING)
        if unknown := [name for name in only if name not in MEANING]:
            raise UsageError(f"there is no fault {unknown[0]!r}", hint=f"one of {', '.join(MEANING)}")
        return plan([name for name in self.faults.names if name in only], self._options.faults, self._random)

    def _started(self) -> bool:
        return all(
            "Ready" in worker.log.read_text(errors="replace") for worker in self.workers.all if worker.log.exists()
        )

    def _hurt(self, fault: str) -> None:
        self._rest(self._random.uniform(*SETTLE))
        self._wait(lambda: all(time.monotonic() - one.began < CALM for one in self._pending))
        if fault in ALONE:
            self._wait(lambda: not self._pending)
        self._say(f"{fault} ({len(self.raw):,} of {self.load.written:,} changes are out)")
        over = self.faults.do(fault)
        self._pending.append(Pending(fault, time.monotonic(), self._counts(), over))
        if fault in ALONE:
            self._wait(lambda: not self._pending)

    def _counts(self) -> dict[tuple[str, int], int]:
        """Return how much has come out of each partition."""
        return {
            **{("raw", partition): count for partition, count in self.raw.counts.items()},
            **{("sink", partition): count for partition, count in self.sinks.counts.items()},
        }

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._watch()
            time.sleep(TICK)

    def _watch(self) -> None:
        for worker in self.workers.all:
            worker.most_starts = 10 + 3 * self._options.faults
        self.workers.watch()
        counts, now = self._counts(), time.monotonic()
        for one in list(self._pending):
            one.is_over = one.is_over or one.over()
            took = now - one.began
            if one.is_over and all(counts[place] > count for place, count in one.counts.items()):
                self.report.slowest = max(self.report.slowest, round(took, 1))
                self._pending.remove(one)
            elif took > STUCK:
                where = [f"{topic}[{p}]" for (topic, p), count in one.counts.items() if counts[topic, p] <= count]
                self._say(f"{one.fault}: not over after {STUCK:.0f} s: {', '.join(where) or 'what it waits for'}")
                self.report.stuck += 1
                self._pending.remove(one)

    def _wait(self, condition: Callable[[], bool]) -> None:
        moved, before = time.monotonic(), -1
        while not condition():
            self._watch()
            out = len(self.raw) + len(self.sinks) + len(self.letters)
            if out != before:
                moved, before = time.monotonic(), out
            if time.monotonic() - moved > IDLE_LIMIT:
                raise FatalError(
                    f"nothing has moved for {IDLE_LIMIT:.0f} s: {len(self.raw):,} of {self.load.written:,} changes are in "
                    f"raw, {len(self.sinks):,} in the sink topic, {rows_in(self._lake):,} in the lake",
                    hint=f"less {self.workers.all[0].log}",
                )
            time.sleep(TICK)

    def _through(self) -> bool:
        """Say whether all that was written has come into the lake. It is asked often, and answers now and then."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK
        try:
            return (
                self.ingest.is_at_end(self.conf)
                and lag(self.conf, self.group, {self.topics.ingest: self.ingest.ends}) == 0
                and self.raw.is_at_end(self.conf)
                and lag(self.conf, self.group, {self.topics.raw: self.raw.ends}) == 0
                and self.sinks.ledgers[-1].is_at_end(self.conf)
                and rows_in(self._lake) >= len(self.sinks)
                and lag(self.conf, self.group, {self.sinks.topic: self.sinks.ledgers[-1].ends}) == 0
                and self.letters.is_at_end(self.conf)
                and self.gaps.is_at_end(self.conf)
            )
        except KafkaException:  # the broker is starting
            return False

    def _compare(self) -> None:
        report = self.report
        report.input, report.output, report.sunk = self.load.written, len(self.raw), len(self.sinks)
        compare(
            report,
            LedgerOutcome(
                self.ingest.changes,
                self.ingest.offsets,
                self.raw.changes,
                [ledger.changes for ledger in self.sinks.ledgers],
                list(letters_in(self.letters, str(FLOW["name"]), self.raw)),
                lake_at(self._lake),
                list(gaps_in(self.gaps, self.topics.ingest)),
                self.scene.trimmed,
            ),
        )
        logs = [path.read_text(errors="replace") for path in self._logs.glob("*.log")]
        report.aborted = sum(log.count("slice aborted") for log in logs)
        words = (
            "ILLEGAL_GENERATION",
            "UNKNOWN_MEMBER_ID",
            "FENCED",
            "not a member of the group",
            "partitions were lost",
        )
        report.fenced = sum(any(word in line for word in words) for log in logs for line in log.splitlines())


def run(options: ChaosOptions, say: Callable[[str], None]) -> ChaosReport:
    """Run the chaos on an Apache Kafka of its own; raise HeadwaterError when it cannot be run."""
    began = datetime.now(UTC)
    with Stack(options.directory / "stack", broker="kafka", progress=say) as stack:
        report = Chaos(options, stack, say).run()
        broker = stack.endpoints.broker if stack.endpoints else ""
    if options.page is not None:
        put_section(options.page, SECTION, section(report, options, began, describe(broker)))
        say(f"wrote {options.page}")
    return report
