"""The soak of the sources: a simulator with all its faults, workers that are killed, and raw held against the truth."""

from __future__ import annotations

import json
import os
import random
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec

from models.change import decode
from pipeline.errors import FatalError
from pipeline.lab import processes
from pipeline.lab.demo import Recorder, lag
from pipeline.lab.machine import describe
from pipeline.lab.page import put_section
from pipeline.lab.processes import LOOPBACK
from pipeline.lab.simulator.server import REST, TRUTH
from pipeline.lab.soak_report import SECTION, section
from pipeline.lab.stack import AWS_URL, Stack
from pipeline.lab.workers import Workers
from pipeline.settings import Settings
from pipeline.sources.places import Gap
from pipeline.topics import Topics, admin, ensure

WORKERS, PARTITIONS, SESSION = 3, 4, 6.0
TABLES = ("orders", "customers")
KILL_EVERY = 20.0
QUIET = 8.0
"""Seconds in which nothing more must come after everything that can come has come."""
IDLE_LIMIT = 120.0
TICK = 0.2


@dataclass(frozen=True, slots=True)
class Options:
    """What the soak is asked to do."""

    directory: Path
    seconds: float = 60.0
    seed: int = 1
    rate: int = 1_500
    """Changes a second."""
    page: Path | None = None
    """Where to write the outcome, as a section of a page in Markdown."""


@dataclass(slots=True)
class Report:
    """The outcome; printed by `--json`."""

    changes: int = 0
    lost: int = 0
    """Changes that are neither in raw nor in a gap that was written down."""
    duplicated: int = 0
    out_of_order: int = 0
    trimmed_ranges: int = 0
    """Ranges that the simulator trimmed before they were read."""
    gaps_recorded: int = 0
    reshards: int = 0
    renewals: int = 0
    """Streams that were switched off, and on again as new ones."""
    tables_come: int = 0
    tables_gone: int = 0
    kills: int = 0
    calls: int = 0
    seconds: float = 0.0
    seed: int = 0

    @property
    def ok(self) -> bool:
        """Whether every change came out once, in order, or is known to be lost."""
        return not (self.lost or self.duplicated or self.out_of_order)

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def run(options: Options, say: Callable[[str], None]) -> Report:
    """Run the soak on an Apache Kafka of its own; raise HeadwaterError when it cannot be run."""
    began = datetime.now(UTC)
    with Stack(options.directory / "stack", broker="kafka", progress=say) as stack:
        report = _Soak(options, stack, say).run()
        broker = stack.endpoints.broker if stack.endpoints else ""
    if options.page is not None:
        put_section(options.page, SECTION, section(report, options, began, describe(broker)))
        say(f"wrote {options.page}")
    return report


class _Soak:
    """One run."""

    def __init__(self, options: Options, stack: Stack, say: Callable[[str], None]) -> None:
        if stack.endpoints is None:
            raise FatalError("the stack is not up")
        self._options, self._say = options, say
        self._random = random.Random(options.seed)  # noqa: S311 - a schedule that can be had again
        self._prefix = f"soak-{options.seed}"
        self._topics = Topics(Settings.model_validate({"prefix": self._prefix, "partitions": PARTITIONS}))
        self._conf: dict[str, Any] = {"bootstrap.servers": stack.endpoints.bootstrap_servers}
        ensure(admin(self._conf), self._topics.all(), 1)
        self._address = f"http://{LOOPBACK}:{processes.free_port()}"
        surroundings = stack.endpoints.environment()
        source = {"kind": "dynamodb-stream", "tables": ["*"], "discovery_interval": 2, "poll_interval": 0.1}
        self._workers = Workers(
            WORKERS,
            options.directory / "workers",
            {
                **os.environ,
                **surroundings,
                **{name: self._address for name in surroundings if name.startswith(AWS_URL)},
                "HEADWATER_PREFIX": self._prefix,
                "HEADWATER_PARTITIONS": str(PARTITIONS),
                "HEADWATER_AGENTS": '["ingest", "deduplicate"]',
                "HEADWATER_SOURCES": json.dumps([source]),
                "HEADWATER_KAFKA__SESSION_TIMEOUT": str(SESSION),
            },
        )

    def run(self) -> Report:
        """Let it happen, kill on the way, wait until everything has come through, compare."""
        began, report = time.monotonic(), Report(seed=self._options.seed)
        simulator = self._simulate()
        with Recorder(self._conf, self._topics.raw) as raw, Recorder(self._conf, self._topics.gaps) as gaps:
            self._workers.start()
            try:
                self._hurt(report)
                self._ask(REST, b"")
                self._wait(raw)
                truth = json.loads(self._ask(TRUTH))
            finally:
                self._workers.stop()
                processes.stop([simulator])
            report.seconds = round(time.monotonic() - began, 1)
            written = [msgspec.json.decode(cast("bytes", gap.value()), type=Gap) for gap in gaps]
            came = list(map(_change, raw))
            for name, what in (("truth", truth), ("raw", came), ("gaps", written)):  # to look into when it fails
                (self._options.directory / f"{name}.json").write_bytes(msgspec.json.encode(what))
            return compare(report, truth, came, written)

    def _simulate(self) -> processes.Process:
        log = self._options.directory / "simulator.log"
        port = self._address.rpartition(":")[2]
        command = [sys.executable, "-m", "pipeline.cli", "simulate", "--rough", "--wait", "--port", port]
        command += ["--seed", str(self._options.seed), "--rate", str(self._options.rate)]
        command += [word for table in TABLES for word in ("--table", table)]
        started = processes.start(
            "simulator", command, log=log, address=self._address, environment=os.environ, detached=False
        )
        processes.wait_until_ready(started, lambda: self._ask(TRUTH) != b"", seconds=30)
        return started

    def _ask(self, path: str, data: bytes | None = None) -> bytes:
        try:
            with urllib.request.urlopen(self._address + path, data, timeout=60) as answer:  # noqa: S310 - our own
                return cast("bytes", answer.read()) or b"{}"
        except OSError:
            return b""

    def _hurt(self, report: Report) -> None:
        end, kill_at = time.monotonic() + self._options.seconds, time.monotonic() + KILL_EVERY / 2
        while (now := time.monotonic()) < end:
            self._watch()
            if now > kill_at:
                self._workers.kill(self._random.randrange(WORKERS))
                report.kills, kill_at = report.kills + 1, now + KILL_EVERY
                self._say(f"{end - now:.0f} s left, {report.kills} kills")
            time.sleep(TICK)

    def _watch(self) -> None:
        for worker in self._workers.all:
            worker.most_starts = 1_000
        self._workers.watch()

    def _wait(self, raw: Recorder) -> None:
        """Wait until nothing moves any more: no change came for a while, and nothing is left to deduplicate."""
        began = moved = time.monotonic()
        before = -1
        while time.monotonic() - moved < QUIET or self._behind():
            self._watch()
            if len(raw) != before:
                before, moved = len(raw), time.monotonic()
            if time.monotonic() - began > IDLE_LIMIT:
                raise FatalError("the workers do not come to the end", hint=f"less {self._workers.all[0].log}")
            time.sleep(TICK)

    def _behind(self) -> int:
        with Recorder(self._conf, self._topics.ingest) as ingest:
            deadline = time.monotonic() + IDLE_LIMIT
            while len(ingest.reached) < PARTITIONS and time.monotonic() < deadline:
                time.sleep(0.05)
            return lag(self._conf, self._prefix, {self._topics.ingest: ingest.ends})


def _change(record: Any) -> tuple[str, str, str]:
    change = decode(record.value())
    key = cast("dict[str, dict[str, str]]", json.loads(record.key()))
    return change.table, key["id"]["S"], change.event_id


def compare(
    report: Report, truth: Mapping[str, Any], raw: Iterable[tuple[str, str, str]], gaps: Iterable[Gap]
) -> Report:
    """Hold raw (table, item and event ID of each change, in order per item) and the gaps against the truth."""
    found: dict[tuple[str, str], list[str]] = {}
    for table, item, event_id in raw:
        found.setdefault((table, item), []).append(event_id)
    gaps = list(gaps)
    report.gaps_recorded, report.reshards = len(gaps), truth["reshapes"]
    report.calls = sum(truth["calls"].values())
    report.tables_come, report.tables_gone = truth["come"], truth["gone"]
    for table, what in truth["tables"].items():
        missing = set()
        for item, wanted in what["changes"].items():
            report.changes += len(wanted)
            came = found.pop((table, item), [])
            places = {event_id: number for number, event_id in enumerate(wanted)}
            counts = Counter(came)
            report.duplicated += sum(n - 1 for n in counts.values()) + sum(one not in places for one in counts)
            numbers = [places[one] for one in dict.fromkeys(came) if one in places]
            report.out_of_order += sum(later < earlier for earlier, later in pairwise(numbers))
            missing |= places.keys() - counts.keys()
        report.lost += len(missing)
        for trimmed in what["trimmed"]:
            unread = [sequence for sequence, event_id in trimmed["records"] if event_id in missing]
            report.trimmed_ranges += bool(unread)
            known = [gap for gap in gaps if (gap.stream, gap.shard) == (trimmed["arn"], trimmed["shard_id"])]
            report.lost -= sum(any(_covers(gap, sequence) for gap in known) for sequence in unread)
        report.renewals += len(what["streams"]) - 1
        renewed = [gap for gap in gaps if gap.table == table and gap.cause == "new stream"]
        if len(renewed) < len(what["streams"]) - 1:
            report.lost += what["unrecorded"]
    report.duplicated += sum(map(len, found.values()))  # of items that never were
    return report


def _covers(gap: Gap, sequence: int) -> bool:
    after = gap.after is None or int(gap.after) < sequence
    return after and (gap.before is None or sequence < int(gap.before))
