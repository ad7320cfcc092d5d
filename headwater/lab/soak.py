"""The soak of the sources: a simulator with all its faults, workers that are killed, and raw compared with the truth."""

from __future__ import annotations

import json
import os
import random
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple, cast

import msgspec

from headwater.lab import processes, soak_report
from headwater.lab.machine import describe
from headwater.lab.page import put_section
from headwater.lab.processes import LOOPBACK
from headwater.lab.provider import Provider
from headwater.lab.recorder import Recorder, lag
from headwater.lab.simulator.server import DRY, REST, TRUTH
from headwater.lab.soak_report import SoakOptions, SoakReport
from headwater.lab.stack import AWS_URL, Stack
from headwater.lab.workers import Workers
from models.change import decode
from models.gap import Gap
from pipeline.errors import FatalError
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics

WORKERS, PARTITIONS, SESSION = 3, 4, 6.0
TABLES = ("orders", "customers")
HELD = 5.0
"""`resequence` of the Kinesis streams whose changes are to be put in order."""
STREAMS: dict[str, dict[str, Any]] = {
    "orders": {"read": "polling"},
    "customers": {"read": "fan-out", "resequence": HELD},
    "carts": {"read": "polling", "resequence": HELD},
    "parcels": {"read": "fan-out"},
}
"""The soak of Kinesis: each stream is read in another way."""
KILL_EVERY = 20.0
DRY_SECONDS = 6.0
"""For so long after every other kill, AWS answers without records."""
HURRY_AT, FAIL_AT, FAIL_SECONDS = 8.0, 12.0, 10.0
"""Seconds after such a kill, until credentials must be renewed, until they cannot be, and for how long."""
QUIET, QUIET_KINESIS = 8.0, 25.0
"""Seconds in which nothing more must come after everything that can come has come. A subscription may be away for 5 s and a
pause, and then changes are held."""
IDLE_LIMIT = 120.0
TICK = 0.2


def run(options: SoakOptions, say: Callable[[str], None]) -> SoakReport:
    """Run the soak on an Apache Kafka of its own; raise HeadwaterError when it cannot be run."""
    began = datetime.now(UTC)
    with Stack(options.directory / "stack", broker="kafka", progress=say) as stack:
        report = _Soak(options, stack, say).run()
        broker = stack.endpoints.broker if stack.endpoints else ""
    if options.page is not None:
        put_section(
            options.page, soak_report.name(options), soak_report.section(report, options, began, describe(broker))
        )
        say(f"wrote {options.page}")
    return report


class _Soak:
    """One run."""

    def __init__(self, options: SoakOptions, stack: Stack, say: Callable[[str], None]) -> None:
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
        often = {"discovery_interval": 2, "poll_interval": 0.1}
        sources: list[dict[str, Any]] = [{"kind": "dynamodb-stream", "tables": ["*"], **often}]
        if options.kinesis:
            sources = [{"kind": "kinesis", "streams": [one], **how, **often} for one, how in STREAMS.items()]
        self._provider = Provider(options.directory)
        self._due: list[tuple[float, Callable[[], object]]] = []
        """What is to be done next, and when; in order."""
        self._workers = Workers(
            WORKERS,
            options.directory / "workers",
            {
                **os.environ,
                **surroundings,
                **{name: self._address for name in surroundings if name.startswith(AWS_URL)},
                **self._provider.environment,
                "HEADWATER_PREFIX": self._prefix,
                "HEADWATER_PARTITIONS": str(PARTITIONS),
                "HEADWATER_AGENTS": '["ingest", "deduplicate"]',
                "HEADWATER_SOURCES": json.dumps(sources),
                "HEADWATER_KAFKA__SESSION_TIMEOUT": str(SESSION),
            },
        )

    def run(self) -> SoakReport:
        """Let it happen, kill on the way, wait until everything has come through, compare."""
        began, report = time.monotonic(), SoakReport(seed=self._options.seed)
        simulator = self._simulate()
        with Recorder(self._conf, self._topics.raw) as raw, Recorder(self._conf, self._topics.gaps) as gaps:
            self._workers.start()
            try:
                self._hurt(report)
                self._provider.work()  # what is still wrong is put right
                self._ask(DRY, b"")
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
            held = {one: how.get("resequence", 0.0) for one, how in STREAMS.items()} if self._options.kinesis else {}
            return compare(report, truth, came, written, held)

    def _simulate(self) -> processes.Process:
        log = self._options.directory / "simulator.log"
        port = self._address.rpartition(":")[2]
        command = [sys.executable, "-P", "-m", "headwater.cli", "simulate", "--rough", "--wait", "--port", port]
        command += ["--seed", str(self._options.seed), "--rate", str(self._options.rate)]
        command += ["--kinesis"] if self._options.kinesis else []
        command += [word for table in (STREAMS if self._options.kinesis else TABLES) for word in ("--table", table)]
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

    def _hurt(self, report: SoakReport) -> None:
        end, kill_at = time.monotonic() + self._options.seconds, time.monotonic() + KILL_EVERY / 2
        while (now := time.monotonic()) < end:
            self._watch()
            while self._due and self._due[0][0] <= now:
                self._due.pop(0)[1]()
            if now > kill_at:
                if report.kills % 2 == 0:
                    self._begin_troubles(report, now)
                self._workers.kill(self._random.randrange(WORKERS))
                report.kills, kill_at = report.kills + 1, now + KILL_EVERY
                self._say(f"{end - now:.0f} s left, {report.kills} kills")
            time.sleep(TICK)

    def _begin_troubles(self, report: SoakReport, now: float) -> None:
        """Have AWS answer without records, also to the worker that comes back; then have the provider of credentials fail."""
        self._ask(DRY, b"1")

        def fail() -> None:
            self._provider.fail()
            report.provider_failures += 1

        self._due += [
            (now + DRY_SECONDS, lambda: self._ask(DRY, b"")),
            (now + HURRY_AT, self._provider.hurry),
            (now + FAIL_AT, fail),
            (now + FAIL_AT + FAIL_SECONDS, self._provider.work),
        ]

    def _watch(self) -> None:
        self._provider.renew()
        for worker in self._workers.all:
            worker.most_starts = 1_000
        self._workers.watch()

    def _wait(self, raw: Recorder) -> None:
        """Wait until nothing moves any more: no change came for a while, and nothing is left to deduplicate."""
        began = moved = time.monotonic()
        before, quiet = -1, QUIET_KINESIS if self._options.kinesis else QUIET
        while time.monotonic() - moved < quiet or self._behind():
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


class Came(NamedTuple):
    """A change as it came out."""

    table: str
    item: str
    event_id: str
    late: bool = False
    """It is marked so."""


def _change(record: Any) -> Came:
    change = decode(record.value())
    key = cast("dict[str, dict[str, str]]", json.loads(record.key()))
    return Came(change.table, key["id"]["S"], change.event_id, bool(record.headers()))


def compare(
    report: SoakReport,
    truth: Mapping[str, Any],
    raw: Iterable[Came],
    gaps: Iterable[Gap],
    held: Mapping[str, float] | None = None,
) -> SoakReport:
    """Compare raw, in order per item, and the gaps with the truth; `held` has the window of each Kinesis stream."""
    found: dict[tuple[str, str], list[Came]] = {}
    for change in raw:
        found.setdefault((change.table, change.item), []).append(change)
    gaps = list(gaps)
    report.gaps_recorded, report.reshards = len(gaps), truth["reshapes"]
    report.dry = truth.get("faults", {}).get("dry", 0)
    report.most_shards, report.calls = truth["widest"], sum(truth["calls"].values())
    report.tables_come, report.tables_gone = truth["come"], truth["gone"]
    for table, what in truth["tables"].items():
        missing = set()
        for item, wanted in what["changes"].items():
            report.changes += len(wanted)
            came = found.pop((table, item), [])
            counts = Counter(change.event_id for change in came)
            report.duplicated += sum(n - 1 for n in counts.values()) + len(counts.keys() - set(wanted))
            report.marked += sum(change.late for change in came)
            if held is None or table not in held:
                report.out_of_order += disorder(wanted, came)
            else:
                late = lateness(wanted, what["delivered"][item])
                report.late += len(late)
                report.out_of_order += disorder_of_kinesis(wanted, what["delivered"][item], late, came, held[table])
            missing |= set(wanted) - counts.keys()
        report.lost += len(missing)
        for trimmed in what["trimmed"]:
            unread = [sequence for sequence, event_id in trimmed["records"] if event_id in missing]
            report.trimmed_ranges += bool(unread)
            # A stream of Kinesis has its creation behind its ARN.
            of_stream = [gap for gap in gaps if gap.stream.startswith(trimmed["arn"])]
            known = [gap for gap in of_stream if gap.shard == trimmed["shard_id"]]
            report.lost -= sum(any(_covers(gap, sequence) for gap in known) for sequence in unread)
        report.renewals += len(what["streams"]) - 1
        renewed = [gap for gap in gaps if gap.table == table and gap.cause == "new stream"]
        if len(renewed) < len(what["streams"]) - 1:
            report.lost += what["unrecorded"]
    report.duplicated += sum(map(len, found.values()))  # of items that never were
    return report


def disorder(wanted: Iterable[str], came: Iterable[Came]) -> int:
    """Count the changes of an item that came before one that is wanted before them."""
    places = {event_id: number for number, event_id in enumerate(wanted)}
    numbers = [places[fromkey] for fromkey in dict.fromkeys(change.event_id for change in came) if fromkey in places]
    return sum(later < earlier for earlier, later in pairwise(numbers))


def lateness(happened: Iterable[str], delivered: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the changes of an item that Kinesis delivered after newer ones: seconds after the first of those."""
    places = {event_id: number for number, event_id in enumerate(happened)}
    found: dict[str, float] = {}
    came: list[tuple[int, float]] = []
    for event_id, at in delivered:
        number = places[event_id]
        newer = [arrived for other, arrived in came if other > number]
        if newer:
            found[event_id] = at - newer[0]
        came.append((number, at))
    return found


def disorder_of_kinesis(
    happened: list[str],
    delivered: list[tuple[str, float]],
    late: Mapping[str, float],
    came: list[Came],
    window: float,
) -> int:
    """Count what is not in its order, and what is marked late and is not.

    Without a window that is the order of the stream. With one it is the order in which the changes happened, but for
    those that came after the window.
    """
    beyond = {event_id for event_id, seconds in late.items() if seconds > window}
    wrong = sum(change.late and change.event_id not in (beyond if window else late) for change in came)
    if not window:
        return wrong + disorder((event_id for event_id, _ in delivered), came)
    return wrong + disorder(happened, [change for change in came if change.event_id not in beyond])


def _covers(gap: Gap, sequence: int) -> bool:
    after = gap.after is None or int(gap.after) < sequence
    return after and (gap.before is None or sequence < int(gap.before))
