"""The benchmark `lake`: a sink topic as Parquet files, by a worker, by Quix Streams' file sink, and by pyarrow alone.

The worker writes to a local directory and to the S3 stand-in, in both layouts. The limit is pyarrow writing the same columns,
prepared, with nothing before or beside it. Pace is taken from the first files to nine tenths of the input: what is left
waits for its file's age. Memory is the worker's peak with 500 partitions open at once.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Message
from rich.console import Console

from headwater.console import print_table
from headwater.lab import processes
from headwater.lab.bench import flow_load, load, systems
from headwater.lab.bench.measure import MeasuredProgress, usage
from headwater.lab.bench.systems import SystemPlace
from headwater.lab.processes import Process
from headwater.lab.stack import Endpoints, Stack
from headwater.lab.workers import Workers
from pipeline.errors import HeadwaterError
from pipeline.sinks.lake.layouts import Layout
from pipeline.sinks.lake.layouts.columns import ColumnsLayout, TableSchema
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.verify import verify_lake
from pipeline.sinks.rows import RowReader

Say = Callable[[str], None]
LAYOUTS = ("envelope", "columns")
FILE_ROWS = 50_000
TARGETS = {"envelope": 100_000, "columns": 75_000}
MEMORY = 1024
"""MiB that a worker with 500 open partitions may take."""
MEASURED = 0.9
"""The part of the input that counts."""
SINKS, PARTITIONS = 10, 50
BUCKET = "headwater-bench"


@dataclass(frozen=True)
class LakeOptions:
    """What to measure."""

    messages: int = 600_000
    rounds: int = 3
    peers: bool = True


@dataclass
class LakeResults:
    """Rows a second by layout and system; MB of messages a second follow from the size of a message."""

    message_bytes: int
    rounds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    rss_mib: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints: medians."""
        found: dict[str, Any] = {}
        for (layout, system), paces in self.rounds.items():
            found.setdefault(layout, {})[system] = round(statistics.median(paces))
        return {**found, "open_partitions_500": {"rss_mib": round(self.rss_mib)}, "message_bytes": self.message_bytes}


def measure(options: LakeOptions, say: Say) -> LakeResults:
    """Measure on a broker and a stand-in of their own."""
    directory = Path(tempfile.mkdtemp(prefix="headwater-bench-"))  # kept when something fails: it holds the logs
    results = LakeResults(len(flow_load.record(1)[1]))
    with Stack(directory / "stack", broker="kafka", progress=say) as stack:
        if stack.endpoints is None:
            raise HeadwaterError("the broker has no address")
        bench = _Bench(stack.endpoints, directory, options, results, say)
        bench.run()
        results.rss_mib = bench.memory()
    shutil.rmtree(directory)
    return results


class _Bench:
    """The runs on one broker."""

    def __init__(
        self, endpoints: Endpoints, directory: Path, options: LakeOptions, results: LakeResults, say: Say
    ) -> None:
        self._endpoints, self._directory = endpoints, directory
        self._options, self._results, self._say = options, results, say
        self._runs = 0

    def run(self) -> None:
        """Run rounds of all systems by turns."""
        quix = self._options.peers and self._has_quix()
        os.environ.update(self._endpoints.environment())  # boto3 and the store of this process read it
        boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        for number in range(self._options.rounds):
            for layout in LAYOUTS:
                self._note(number, layout, "limit", limit(layout))
                self._note(number, layout, "headwater", self._worker(layout, s3=False))
                self._note(number, layout, "headwater_s3", self._worker(layout, s3=True))
            if quix:
                self._note(number, "envelope", "quix", self._quix())

    def _note(self, number: int, layout: str, system: str, pace: float) -> None:
        self._results.rounds.setdefault((layout, system), []).append(pace)
        megabytes = pace * self._results.message_bytes / 1e6
        self._say(f"round {number + 1}: {layout}: {system}: {pace:,.0f} rows/s, {megabytes:,.0f} MB/s")

    def _has_quix(self) -> bool:
        try:
            systems.prepare_quix(self._say)
        except HeadwaterError as error:
            self._results.left_out["Quix Streams"] = error.message
            self._say(f"left out: Quix Streams: {error.message}")
            return False
        return True

    def _place(self) -> SystemPlace:
        self._runs += 1
        prefix = f"bench{self._runs}"
        place = SystemPlace(self._endpoints.bootstrap_servers, prefix, self._directory / prefix)
        load.make_topics(place.servers, [_topic(place)])
        flow_load.preload(place.servers, _topic(place), flow_load.orders(self._options.messages))
        return place

    def _follow(self, place: SystemPlace, process: Process) -> float:
        with MeasuredProgress(place.servers, place.prefix, _topic(place)) as progress:
            return progress.follow(process, int(self._options.messages * MEASURED)).per_second

    def _worker(self, layout: str, *, s3: bool) -> float:
        place = self._place()
        url = f"s3://{BUCKET}/{place.prefix}" if s3 else f"file://{place.directory}/lake"
        process = self._start(
            place, url, {"HEADWATER_LAKE__LAYOUT": layout, "HEADWATER_LAKE__MAX_ROWS": f"{FILE_ROWS}"}
        )
        try:
            pace = self._follow(place, process)
            with MeasuredProgress(place.servers, place.prefix, _topic(place)) as progress:
                progress.follow(process, self._options.messages, begin=progress.committed() - 1)
        finally:
            processes.stop([process])
        checked = verify_lake(Objects(url))
        if checked.problems or checked.rows != self._options.messages:
            said = f"{checked.rows} of {self._options.messages} rows, {len(checked.problems)} problems"
            self._results.failures.append(f"{layout}, {url}: {said}")
        load.drop_topics(place.servers, place.prefix)
        return pace

    def _start(
        self, place: SystemPlace, url: str, settings: Mapping[str, str], sinks: int = 1, partitions: int = 4
    ) -> Process:
        names = ["out"] if sinks == 1 else [f"out{number}" for number in range(sinks)]
        flows = [{"name": name, "to": name} for name in names]
        environment = {
            **self._endpoints.environment(),
            "HEADWATER_AGENTS": '["lake"]',
            "HEADWATER_FLOWS": json.dumps(flows),
            "HEADWATER_KAFKA__REPLICATION_FACTOR": "1",
            "HEADWATER_PARTITIONS": f"{partitions}",
            "HEADWATER_PREFIX": place.prefix,
            "HEADWATER_LAKE__URL": url,
            "HEADWATER_LAKE__MAX_AGE": "2",
            **settings,
        }
        return systems.worker_process(Workers(1, place.directory, environment))

    def _quix(self) -> float:
        place = self._place()
        arguments = [
            place.servers,
            place.prefix,
            _topic(place),
            "lake",
            str(place.state),
        ]  # it takes no path with a dash in it
        process = systems.run_quix(place, "lake.py", arguments)
        try:
            return self._follow(place, process)
        finally:
            processes.stop([process])
            load.drop_topics(place.servers, place.prefix)

    def memory(self) -> float:
        """Return the peak of a worker's memory, in MiB, with 500 partitions open: all of its rows wait for their age."""
        prefix = "many"
        place = SystemPlace(self._endpoints.bootstrap_servers, prefix, self._directory / prefix)
        topics = [f"{prefix}.sink.out{number}" for number in range(SINKS)]
        load.make_topics(place.servers, topics, PARTITIONS)
        count = max(SINKS * PARTITIONS, self._options.messages)
        for number, topic in enumerate(topics):
            records = map(flow_load.record, range(number, count, SINKS))
            flow_load.preload(place.servers, topic, records, PARTITIONS)
        settings = {"HEADWATER_LAKE__MAX_AGE": "20", "HEADWATER_LAKE__LAYOUT": "columns"}
        process = self._start(place, f"file://{place.directory}/lake", settings, SINKS, PARTITIONS)
        try:
            deadline = time.monotonic() + 300
            while (written := _rows(f"file://{place.directory}/lake")) < count:
                if time.monotonic() > deadline or not process.alive():
                    raise HeadwaterError(f"{written} of {count} rows were written", hint=f"less {process.log}")
                time.sleep(0.5)
            peak = usage(process.pid).peak_mib
        finally:
            processes.stop([process])
        self._say(f"{SINKS * PARTITIONS} open partitions: {peak:,.0f} MiB at most")
        return peak


def _rows(url: str) -> int:
    return verify_lake(Objects(url), whole=False).rows


def _topic(place: SystemPlace) -> str:
    return f"{place.prefix}.sink.out"


def limit(layout: str, count: int = 4 * FILE_ROWS) -> float:
    """Return the rows a second that pyarrow writes of columns that are there: one thread, files of the same size."""
    schemas: dict[str, TableSchema] = {}

    def grow(table: str, schema: TableSchema) -> TableSchema:
        schemas[table] = schemas.get(table, TableSchema()).merge(schema)
        return schemas[table]

    made: Layout = EnvelopeLayout()
    if layout == "columns":
        made = ColumnsLayout(lambda table: schemas.get(table, TableSchema()), grow)
    tables = []
    for begin in range(0, count, FILE_ROWS):
        records = map(flow_load.record, range(begin, begin + FILE_ROWS))
        messages = [Message("", 0, offset=n, key=key, value=value) for n, (key, value) in enumerate(records)]
        tables.append(pa.concat_tables(made.table("orders", 0, rows) for rows, _ in RowReader().read(messages)))
    started = time.perf_counter()
    for table in tables:
        pq.write_table(
            table,
            io.BytesIO(),
            compression="zstd",
            use_dictionary=made.dictionary(table.schema),
            write_statistics=made.statistics(table.schema),
        )
    return count / (time.perf_counter() - started)


def show(results: LakeResults, console: Console) -> None:
    """Print what was measured."""
    rows = []
    medians = results.as_json()
    for layout in LAYOUTS:
        for system, pace in medians[layout].items():
            ratio = f"{pace / medians[layout]['limit']:.2f}"
            target = f"{TARGETS[layout]:,}" if system.startswith("headwater") else ""
            megabytes = f"{pace * results.message_bytes / 1e6:,.0f}"
            rows.append((layout, system, f"{pace:,}", megabytes, ratio, target))
    print_table(("layout", "system", "rows/s", "MB/s", "of the limit", "target"), rows, console)
    console.print(f"500 open partitions: {results.rss_mib:,.0f} MiB (at most {MEMORY:,})")
    for name, why in results.left_out.items():
        console.print(f"left out: {name}: {why}")
