"""The demo: real parts from a changed DynamoDB item to a Parquet row, and the proof that nothing went wrong on the way."""

from __future__ import annotations

import base64
import io
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import boto3
import pyarrow.parquet as pq
from botocore.exceptions import ClientError
from confluent_kafka import Message, Producer

from headwater.lab.destinations import Copies, Destinations, create_replica, destination_settings, replay
from headwater.lab.proof import Actual, Masks, PlainComparison, ProofExpected, ProofVerdict, Truth, compare
from headwater.lab.recorder import Recorder, lag
from headwater.lab.stack import AwsChoice, BrokerChoice, Endpoints, Stack
from headwater.lab.workers import Workers
from headwater.lab.workload import CUSTOMERS, Workload
from models.change import decode
from pipeline.errors import FatalError
from pipeline.settings.load import load
from pipeline.settings.root import Settings
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.paths import origin_of
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics

Fault = Literal["none", "kill", "freeze"]
CONFIG = Path(__file__).with_name("demo.toml")
DUPLICATES_EVERY = 20
"""One of so many changes is delivered a second time."""
FREEZE_BEYOND = 3.0
"""Seconds beyond the session time-out for which a worker is frozen."""
IDLE_LIMIT = 90.0
"""Seconds without any progress after which the demo gives up."""
TICK = 0.1
CLEAR = '"name":{"S":"Customer'
"""What a row shows when a customer's name was not masked."""
LIST_EVERY = 1.0


@dataclass(frozen=True)
class DemoOptions:
    """What the demo is asked to do."""

    directory: Path
    changes: int = 5_000
    seed: int = 1
    workers: int = 2
    broker: BrokerChoice = "auto"
    aws: AwsChoice = "ministack"
    fault: Fault = "none"
    keep: bool = False


@dataclass
class DemoProgress:
    """How far each stage is, in changes."""

    note: str = "starting"
    total: int = 0
    written: int = 0
    ingested: int = 0
    duplicates_injected: int = 0
    raw: int = 0
    dead_letters: int = 0
    sinks: dict[str, int] = field(default_factory=dict)
    parquet_files: int = 0
    parquet_rows: int = 0

    @property
    def duplicates_dropped(self) -> int:
        """Changes on the ingest topic that are not on raw."""
        return max(0, self.ingested - self.raw - self.dead_letters)


@dataclass(frozen=True)
class DemoReport:
    """The outcome; printed by `--json`."""

    written: int
    ingested: int
    duplicates_injected: int
    duplicates_dropped: int
    raw: int
    lost: int
    duplicated: int
    out_of_order: int
    altered: int
    sinks: dict[str, int]
    joined: int
    masked: int
    """Different values that were masked; each of them to one hash."""
    copies: Copies | None
    """Of the other destinations; None with the fallback broker, which is too small for them."""
    parquet_files: int
    parquet_rows: int
    seconds: float
    broker: str
    examples: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that was written came out everywhere, once, in order, as it was."""
        faults = self.lost + self.duplicated + self.out_of_order + self.altered
        faults += self.copies.differences if self.copies is not None else 0
        return not faults and self.duplicates_dropped == self.duplicates_injected

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class Demo:
    """One run, against a stack that is up. The workers run until `close`."""

    def __init__(self, options: DemoOptions, endpoints: Endpoints, other_servers: str, progress: DemoProgress) -> None:
        self.options, self.endpoints, self.progress = options, endpoints, progress
        self.environment = {**os.environ, **endpoints.environment(), "HEADWATER_CONFIG": str(CONFIG)}
        self.environment["DEMO_MASK_KEY"] = base64.b64encode(os.urandom(32)).decode()
        self.environment["HEADWATER_LAKE__URL"] = f"s3://headwater-demo/{int(time.time())}"
        self.environment |= destination_settings(options.directory, other_servers)
        os.environ.update(endpoints.environment())  # boto3 and the settings of this process read it
        os.environ.update(destination_settings(options.directory, other_servers))
        os.environ["HEADWATER_CONFIG"] = str(CONFIG)
        self.settings: Settings = load(lake={"url": self.environment["HEADWATER_LAKE__URL"], "max_age": 2})
        self.topics = Topics(self.settings)
        self.conf: dict[str, Any] = {
            "bootstrap.servers": self.settings.kafka.bootstrap_servers,
            **self.settings.kafka.properties,
        }
        self.workers = Workers(options.workers, options.directory / "workers", self.environment, detached=options.keep)
        self.workload = Workload(boto3.client("dynamodb"), seed=options.seed, changes=options.changes)
        self._open = ExitStack()
        self._failure: BaseException | None = None
        self._written = threading.Event()
        self._listed = 0.0
        self.truth = Truth([])
        self.masked = 0
        self.replayed: dict[str, Any] = {}
        self.destinations = Destinations(self.settings, options.directory, self.environment, detached=options.keep)

    def prepare(self) -> None:
        """Make the tables, the bucket and the topics; start the workers."""
        self.progress.note = "creating tables, bucket and topics"
        self.progress.total = self.options.changes
        self.workload.create_tables()
        create_replica()
        bucket = (self.settings.lake.url or "").split("/")[2]
        try:
            boto3.client("s3").create_bucket(
                Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
            )
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                raise FatalError(f"the bucket {bucket} cannot be created: {error}", hint="headwater check") from error
        client = admin(self.conf)
        made = ensure(client, self.topics.all(), self.settings.kafka.replication_factor)
        if self.topics.raw not in made:
            raise FatalError(
                f"the topic {self.topics.raw} exists already: the proof needs topics of its own",
                hint="another cluster, or delete the topics that begin with demo.",
            )
        self.unread = set(self.topics.sinks.values()) - set(self.topics.sinks_of(self.settings.lake).values())
        self.objects = Objects(self.settings.lake.url or "")
        self.ingest, self.raw, self.dead = (
            self._open.enter_context(Recorder(self.conf, topic))
            for topic in (self.topics.ingest, self.topics.raw, self.topics.dead_letter)
        )
        self.references = self._open.enter_context(Recorder(self.conf, self.topics.reference(CUSTOMERS)))
        self.sinks = {
            sink: self._open.enter_context(Recorder(self.conf, topic)) for sink, topic in self.topics.sinks.items()
        }
        self._open.callback(self.workers.stop)
        # noida-db has been seen to give no partitions to two members that joined in the same moment.
        self.workers.start(in_turn=self.endpoints.broker.startswith("noida"))
        self.destinations.start()
        self._open.callback(self.destinations.stop)

    def run(self) -> None:
        """Write, carry, inject duplicates, hurt a worker if asked; return when everything has arrived."""
        threading.Thread(target=self._write, name="workload", daemon=True).start()
        self.progress.note = "changes on their way"
        hurt = self.options.fault == "none"
        moved, before = time.monotonic(), ()
        while not self._arrived():
            self._look()
            self.workers.watch()
            self.destinations.watch()
            self._inject()
            if not hurt and self.progress.raw >= self.options.changes // 4:
                hurt = True
                self._hurt()
            now = self._state()
            if now != before or self.workers.frozen:
                moved, before = time.monotonic(), now
            if time.monotonic() - moved > IDLE_LIMIT:
                raise FatalError(
                    f"nothing has moved for {IDLE_LIMIT:.0f} s: {self._state()}",
                    hint=f"less {self.workers.all[0].log}",
                )
            if self._failure is not None:
                raise self._failure
            time.sleep(TICK)
        self._look()

    def close(self) -> None:
        """Stop the workers and the recorders."""
        self._open.close()

    def leave_running(self) -> None:
        """Stop the recorders, leave the workers."""
        self._open.pop_all()

    def how_to_look_around(self) -> str:
        """Return the commands with which to explore what was left running."""
        variables = {
            **self.endpoints.environment(),
            "HEADWATER_CONFIG": str(CONFIG),
            "HEADWATER_LAKE__URL": self.settings.lake.url or "",
            "DEMO_MASK_KEY": self.environment["DEMO_MASK_KEY"],
            "HEADWATER_MIRRORS": f"'{self.environment['HEADWATER_MIRRORS']}'",
            "HEADWATER_LAKES": f"'{self.environment['HEADWATER_LAKES']}'",
        }
        everyone = [*self.workers.all, *self.destinations.all]
        workers = [worker.process for worker in everyone if worker.process is not None]
        return "\n".join(
            [
                "Everything is still running. Look around with:",
                *(f"  export {name}={value}" for name, value in variables.items()),
                "  headwater status",
                "  headwater topics",
                *(f"  curl {process.address}/metrics   # {process.name}, pid {process.pid}" for process in workers),
                f"  less {self.workers.all[0].log}",
                "Stop it with:",
                f"  kill {' '.join(str(process.pid) for process in workers)}",
                f"  headwater local down --dir {self.options.directory}",
            ]
        )

    def prove(self, started: float) -> DemoReport:
        """Compare raw, the sinks and the Parquet files, change by change, with what was written."""
        self.progress.note = "comparing"
        rows, joined, clear = self._parquet()
        copies = self.destinations.compare(self.sinks, self.truth, self.objects, self.replayed)
        verdicts = [compare(self.truth, map(_actual, self.raw))]
        masks = Masks()
        for sink, records in self.sinks.items():
            expected = self.truth.where(lambda change, sink=sink: sink in sinks_of(change))  # type: ignore[misc]
            if sink == "customers":
                verdicts.append(
                    compare(expected, map(_actual_plain, records), PlainComparison(expected, "name", masks))
                )
                continue
            verdicts.append(compare(expected, map(_actual, records)))
            if sink in self.topics.sinks_of(self.settings.lake):
                verdicts.append(compare(expected, rows.get(sink, [])))
        self.masked = len(masks)
        if clear:
            verdicts.append(
                ProofVerdict(0, clear, 0, 0, 0, clear, 0, (f"{clear} rows show the name of their customer",))
            )
        seconds = time.monotonic() - started
        return self._report(verdicts, sum(len(found) for found in rows.values()), joined, copies, seconds)

    def _write(self) -> None:
        try:
            self.truth = self.workload.run(self._count, between=self._wait_for_customers)
            self._written.set()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._failure = error

    def _count(self, written: int) -> None:
        self.progress.written = written

    def _wait_for_customers(self) -> None:
        """Let the customers arrive before their orders, so that the join has something to find."""
        deadline = time.monotonic() + IDLE_LIMIT
        while len({record.key() for record in self.references}) < self.progress.written:
            if time.monotonic() > deadline:
                raise FatalError("the customers have not arrived", hint=f"less {self.workers.all[0].log}")
            time.sleep(TICK)

    def _look(self) -> None:
        progress = self.progress
        progress.ingested, progress.raw, progress.dead_letters = len(self.ingest), len(self.raw), len(self.dead)
        progress.sinks = {sink: len(records) for sink, records in self.sinks.items()}
        if time.monotonic() - self._listed > LIST_EVERY:
            self._listed = time.monotonic()
            progress.parquet_files = sum(origin_of(path) is not None for path in self.objects.paths())

    def _inject(self) -> None:
        """Deliver records of the ingest topic a second time, as a retrying source would."""
        wanted = len(self.ingest) // DUPLICATES_EVERY
        if self._written.is_set() or self.progress.duplicates_injected >= wanted:
            return
        producer = Producer({**self.conf, "linger.ms": 5})
        again = [record for partition in list(self.ingest.records.values()) for record in partition[::7]]
        for record in again[: wanted - self.progress.duplicates_injected]:
            producer.produce(self.topics.ingest, record.value(), record.key(), cast("int", record.partition()))
            self.progress.duplicates_injected += 1
        if producer.flush(30):
            raise FatalError(
                "duplicates could not be injected: the broker does not answer", hint="headwater local status"
            )

    def _hurt(self) -> None:
        if self.options.fault == "kill":
            self.workers.kill(0)
        else:
            self.workers.freeze(0, self.settings.kafka.session_timeout + FREEZE_BEYOND)

    def _state(self) -> tuple[Any, ...]:
        p = self.progress
        return p.written, p.ingested, p.raw, tuple(p.sinks.values()), p.parquet_files

    def _arrived(self) -> bool:
        """Say whether every stage has read to the end of its topic and committed that."""
        if not self._written.is_set() or self.workers.frozen:
            return False
        p = self.progress
        self._look()
        if p.ingested < p.written + p.duplicates_injected or p.raw + p.dead_letters < p.written:
            return False
        sinks = {self.topics.sinks[sink]: records for sink, records in self.sinks.items()}
        # Stage by stage: what a stage writes after its output was looked at would not be waited for.
        stages = {self.topics.ingest: self.ingest.ends, self.topics.raw: self.raw.ends}
        if lag(self.conf, self.settings.prefix, stages) > 0:
            return False
        if not all(recorder.is_at_end(self.conf) for recorder in sinks.values()):
            return False
        # A sink that the lake does not take has no reader.
        read = {topic: recorder.ends for topic, recorder in sinks.items() if topic not in self.unread}
        if lag(self.conf, self.settings.prefix, read) > 0:
            return False
        return self.destinations.arrived(self.conf, {topic: recorder.ends for topic, recorder in sinks.items()})

    def _parquet(self) -> tuple[dict[str, list[Actual]], int, int]:
        """Return the rows by sink, how many have their customer, and how many show a name that is to be masked."""
        rows: dict[str, list[Actual]] = {}
        joined = clear = 0
        # Rows of an item in the order of its partition, whatever hours its changes are of.
        paths = sorted((origin, path) for path in self.objects.paths() if (origin := origin_of(path)) is not None)
        sinks = {topic: sink for sink, topic in self.topics.sinks.items()}
        self.progress.parquet_files = len(paths)
        for origin, path in paths:
            sink = sinks[origin.topic]
            table = pq.read_table(io.BytesIO(self.objects.read(path)))
            found = table.to_pylist()
            rows.setdefault(sink, []).extend(_actual_row(row) for row in found)
            joined += sum(1 for row in found if row["enriched"] and '"customer":{"NULL"' not in row["enriched"])
            clear += sum(1 for row in found if row["enriched"] and CLEAR in row["enriched"])
            self.progress.parquet_rows += len(found)
        return rows, joined, clear

    def _report(
        self, verdicts: list[ProofVerdict], rows: int, joined: int, copies: Copies | None, seconds: float
    ) -> DemoReport:
        p = self.progress
        return DemoReport(
            written=p.written,
            ingested=p.ingested,
            duplicates_injected=p.duplicates_injected,
            duplicates_dropped=p.duplicates_dropped,
            raw=p.raw,
            lost=sum(verdict.lost for verdict in verdicts),
            duplicated=sum(verdict.duplicated for verdict in verdicts),
            out_of_order=sum(verdict.out_of_order for verdict in verdicts),
            altered=sum(verdict.altered + verdict.unexpected for verdict in verdicts),
            sinks=dict(p.sinks),
            joined=joined,
            masked=self.masked,
            copies=copies,
            parquet_files=p.parquet_files,
            parquet_rows=rows,
            seconds=round(seconds, 1),
            broker=self.endpoints.broker,
            examples=tuple(example for verdict in verdicts for example in verdict.examples)[:10],
        )


def sinks_of(change: ProofExpected) -> set[str]:
    """Say, apart from the flows' own code, to which sinks demo.toml sends a change."""
    if change.table == CUSTOMERS:
        return {"customers"}
    if change.op == "d" or change.new is None:
        return {"orders-all"}
    return {"orders-all", "orders-settled" if change.new["status"]["S"] in {"paid", "shipped"} else "orders-other"}


def _actual(record: Message) -> Actual:
    change = decode(cast("bytes", record.value()))
    return change.table, cast("bytes", record.key()), change.event_id, change.op, change.after, change.before


def _actual_plain(record: Message) -> Actual:
    """Return a message of a sink in plain JSON: its value is the item, of a deletion the old one; the rest is in headers."""
    said = {name: value.decode() for name, value in cast("list[tuple[str, bytes]]", record.headers())}
    new, old = (None, record.value()) if said["op"] == "d" else (record.value(), None)
    return said["table"], cast("bytes", record.key()), said["event_id"], said["op"], new, old


def _actual_row(row: dict[str, Any]) -> Actual:
    new, old = row["after"], row["before"]
    return (
        row["table"],
        row["key"].encode(),
        row["event_id"],
        row["op"],
        None if new is None else new.encode(),
        None if old is None else old.encode(),
    )


def run(options: DemoOptions, progress: DemoProgress, say: Callable[[str], None]) -> tuple[DemoReport, Demo]:
    """Run the whole demo; raise HeadwaterError when it cannot be run. With `keep`, stack and workers stay up."""
    started = time.monotonic()
    stack = Stack(
        options.directory,
        broker=options.broker,
        aws=options.aws,
        detached=options.keep,
        second=True,
        progress=say,
    )
    endpoints = stack.start()
    try:
        demo = Demo(options, endpoints, stack.other_servers, progress)
        try:
            demo.prepare()
            demo.run()
            if demo.destinations.exist:
                progress.note = "replaying everything"
                demo.replayed = replay(demo.environment, options.directory)
        except BaseException:
            demo.close()
            raise
        if options.keep:
            demo.leave_running()
        else:
            demo.close()
        return demo.prove(started), demo
    finally:
        if not options.keep:
            stack.stop()
