"""Each row of docs/reference/faust.md: a small app, as a real worker on Apache Kafka, killed half-way and started again."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from support.faust_row import PARTITIONS, in_order, written
from support.faust_table import Facts, facts
from support.fleet import log_of
from support.paths import TESTS
from support.waiting import until

from headwater.lab.recorder import Recorder, lag
from headwater.lab.stack import Endpoints
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic

pytestmark = pytest.mark.kafka

Record = tuple[str, str, bytes | None] | tuple[str, str, bytes | None, int]
"""Topic, key, value, and perhaps the time in milliseconds."""


@dataclass
class Row:
    """A row with topics of its own, and its worker."""

    endpoints: Endpoints
    directory: Path
    facts: Facts
    name: str

    def __post_init__(self) -> None:
        self.conf: dict[str, Any] = {"bootstrap.servers": self.endpoints.bootstrap_servers}
        # As Java clients do, and in order when something is sent again.
        self.producer = Producer({**self.conf, "partitioner": "murmur2_random", "enable.idempotence": True})
        more = dict.fromkeys(self.facts.topics, PARTITIONS)
        self.make({"in": PARTITIONS, "out": PARTITIONS, **more, **self.facts.partitions})

    def make(self, topics: dict[str, int]) -> None:
        """Make topics of so many partitions."""
        ensure(admin(self.conf), [Topic(self.full(topic), count, topic) for topic, count in topics.items()], 1)

    def full(self, topic: str) -> str:
        """Return the full name of a topic."""
        return f"{self.name}-{topic}"

    @property
    def module(self) -> ModuleType:
        """The app, imported here as well: it says what must come out."""
        return importlib.import_module(f"support.faust_rows.{self.facts.row}")

    def environment(self, instance: str = "one") -> dict[str, str]:
        """Return what the app reads."""
        return {
            **os.environ,
            "ROW_NAME": self.name,
            "ROW_BROKER": self.endpoints.bootstrap_servers,
            "ROW_INSTANCE": instance,
            "PYTHONPATH": str(TESTS),
        }

    def workers(self, count: int = 1) -> Workers:
        """Make workers, each with its name in the group: one that is started again need not wait for the session's end."""
        workers = Workers(count, self.directory, self.environment(), module=f"support.faust_rows.{self.facts.row}")
        for worker in workers.all:
            worker.environment = self.environment(worker.name)
        return workers

    @contextmanager
    def running(self, count: int = 1) -> Iterator[Workers]:
        """Run workers until the end of the block."""
        workers = self.workers(count)
        try:
            workers.start()
            yield workers
        finally:
            workers.stop()

    def write(self, records: Sequence[Record]) -> None:
        """Write records, and wait until the broker has them."""
        for topic, key, value, *time in records:
            more: dict[str, Any] = {"timestamp": time[0]} if time else {}
            self.producer.produce(self.full(topic), value, key.encode(), **more)
            self.producer.poll(0)
        assert self.producer.flush(30) == 0

    def recorder(self, topic: str = "out") -> Recorder:
        """Return what keeps the committed records of a topic."""
        return Recorder(self.conf, self.full(topic))

    def all_read(self, *topics: str) -> bool:
        """Say whether the worker has committed all of its topics."""
        ends = {}
        for topic in topics:
            with self.recorder(topic) as inputs:
                until(lambda: inputs.is_at_end(self.conf), "the end of the input")
                ends[self.full(topic)] = inputs.ends
        return lag(self.conf, self.name, ends) == 0


def inputs_of(module: ModuleType) -> list[Record]:
    """Return what is written for a row."""
    if hasattr(module, "inputs"):
        return list(module.inputs())
    return [("in", key, json.dumps(number).encode()) for key, number in written()]


def pairs(out: Recorder) -> list[tuple[str, Any]]:
    """Return keys and values of what came out."""
    return [((r.key() or b"").decode().strip('"'), json.loads(r.value() or b"null")) for r in out]


def alive(worker: WorkerProcess) -> bool:
    """Fail when a worker has ended."""
    assert worker.alive(), log_of(worker)[-4000:]
    return True


def kill(worker: WorkerProcess) -> None:
    """Kill a worker and wait for its end."""
    worker.signal(signal.SIGKILL)
    until(lambda: not worker.alive(), "its death")


def exact(row: Row) -> None:
    """Kill the worker while it works; what comes out must be exactly what it would be without."""
    module = row.module
    records = inputs_of(module)
    wanted = module.expected(written())
    half, count = len(records) // 2, sum(map(len, wanted.values())) if isinstance(wanted, dict) else len(wanted)
    with row.recorder() as out:
        row.write(records[:half])
        with row.running() as workers:
            worker = workers.all[0]
            until(lambda: alive(worker) and len(out) > 0, "work under way")
            row.write(records[half:])
            if row.facts.state != "not killed":
                kill(worker)
                if row.facts.state == "lost":
                    shutil.rmtree(worker.state)
                worker.start()
            until(lambda: alive(worker) and len(out) >= count, "all of the output")
            read = {topic for topic, *_ in records}
            until(lambda: alive(worker) and row.all_read(*read), "the commit of all of the input")
            until(lambda: out.is_at_end(row.conf), "the end of the output")
            assert "Traceback" not in log_of(worker)
        found = pairs(out)
    if isinstance(wanted, dict):
        came = in_order(found)
        for key, values in wanted.items():
            assert came.pop(key, []) == values, key
        assert not came
    else:
        assert sorted(map(str, (value for _, value in found))) == sorted(map(str, wanted))


def refused(row: Row) -> None:
    """The worker ends at its start, and says why."""
    with row.running() as workers:
        worker = workers.all[0]
        until(lambda: not worker.alive(), "the end of the worker", 30)
        assert worker.process is not None
        assert row.facts.says in log_of(worker)


def ends(row: Row) -> None:
    """The worker ends at its input, says why, and commits nothing of it."""
    with row.recorder() as out, row.running() as workers:
        row.write(inputs_of(row.module)[-1:])
        worker = workers.all[0]
        until(lambda: not worker.alive(), "the end of the worker")
        assert row.facts.says in log_of(worker)
        until(lambda: out.is_at_end(row.conf), "the end of the output")
        assert len(out) == 0


def beats(row: Row) -> None:
    """What is sent without an event comes, before and after a death."""
    wanted = set(row.facts.keys)
    with row.recorder() as out, row.running() as workers:
        worker = workers.all[0]
        until(lambda: alive(worker) and {key for key, _ in pairs(out)} == wanted, "what is sent")
        before = len(out)
        kill(worker)
        worker.start()
        until(lambda: alive(worker) and {key for key, _ in pairs(out)[before:]} == wanted, "what is sent")


def said(worker: WorkerProcess, words: str) -> bool:
    """Say whether a worker has said something."""
    return alive(worker) and words in log_of(worker)


def get(worker: WorkerProcess, path: str) -> Any:
    """Ask a worker's web server; None where it does not answer."""
    assert worker.process is not None
    try:
        with urllib.request.urlopen(worker.process.address + path, timeout=5) as answer:  # noqa: S310 - our own worker
            return json.loads(answer.read())
    except (OSError, urllib.error.HTTPError):
        return None


def pages(row: Row) -> None:
    """Each request sends once, to the worker that was started again as well."""
    with row.recorder() as out, row.running() as workers:
        worker = workers.all[0]
        for number in range(10):
            until(lambda: alive(worker) and get(worker, f"/put/{number}") == {"put": number}, "an answer")  # noqa: B023
            until(lambda: len(out) == number + 1, "what was sent")  # noqa: B023
            if number == 5:
                kill(worker)
                worker.start()
        assert pairs(out) == [("web", number) for number in range(10)]


def routes(row: Row) -> None:
    """Each of two workers answers for all keys."""
    keys = sorted({key for key, _ in written()})
    wanted = {key: sum(1 for one, _ in written() if one == key) for key in keys}

    def answers(worker: WorkerProcess) -> dict[str, Any]:
        return {key: (get(worker, f"/count/{key}/") or {}).get(key) for key in keys}

    row.write(inputs_of(row.module))
    with row.running(2) as workers:
        until(lambda: all(alive(one) and answers(one) == wanted for one in workers.all), "the answers of both")
        kill(workers.all[0])
        workers.all[0].start()
        until(lambda: all(alive(one) and answers(one) == wanted for one in workers.all), "the answers of both, again")


def command(row: Row, *words: str) -> str:
    """Run a command of the app, and return what it prints."""
    line = [sys.executable, "-P", "-m", "headwater.worker", "-A", f"support.faust_rows.{row.facts.row}", *words]
    state = str(row.directory / "worker-1.state")
    environment = {**row.environment(), "HEADWATER_STATE_DIR": state, "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def commands(row: Row) -> None:
    """The commands say what there is, and `reset` takes the files: the worker is exact beside them and after it."""
    exact(row)
    assert "hello from a command" in command(row, "greet")
    assert "Count numbers." in command(row, "agents")
    assert "Order" in command(row, "models", "--builtins")
    assert "numbers of each key" in command(row, "tables")
    assert "Removing database for table counts" in command(row, "reset")
    assert not list((row.directory / "worker-1.state").rglob("counts-*.db"))
    command(row, "clean-versions")


def tables(row: Row) -> None:
    """The pages of Faust show what the table holds."""
    exact(row)
    with row.running() as workers:
        worker = workers.all[0]
        until(lambda: alive(worker) and get(worker, "/table/") is not None, "an answer")
        assert "counts" in json.dumps(get(worker, "/table/"))
        assert get(worker, "/table/counts/") is not None


def metrics(row: Row) -> None:
    """The page of metrics counts what the worker has received."""
    exact(row)
    with row.running() as workers:
        worker = workers.all[0]

        def page() -> str:
            assert worker.process is not None
            try:
                with urllib.request.urlopen(worker.process.address + "/metrics", timeout=5) as answer:  # noqa: S310 - ours
                    return str(answer.read(), "utf-8")
            except OSError:
                return ""

        row.write(inputs_of(row.module))
        until(
            lambda: alive(worker) and f'{row.name}_events_runtime_ms_bucket{{le="+Inf"}} 400.0' in page(), "the count"
        )


def asks(path: str) -> Callable[[Row], None]:
    """Return a drive that asks a page, before and after a death."""

    def drive(row: Row) -> None:
        with row.running() as workers:
            worker = workers.all[0]
            for number in range(10):
                until(lambda: alive(worker) and get(worker, f"{path}{number}") == {"answer": number * 2}, "an answer")  # noqa: B023
                if number == 5:
                    kill(worker)
                    worker.start()

    return drive


def answers(row: Row) -> None:
    """Each start asks ten times, and all answers come."""
    key = row.facts.row.removeprefix("ask_")
    with row.recorder() as out, row.running() as workers:
        worker = workers.all[0]
        for starts in (1, 2):
            until(lambda: alive(worker) and len(out) >= 10 * starts, "the answers")  # noqa: B023
            kill(worker)
            worker.start()
        assert sorted(pairs(out)[:20]) == sorted([(key, number * 2) for number in range(10)] * 2)


def leads(row: Row) -> None:
    """One of two workers leads; when it dies, the other does."""
    with row.recorder() as out, row.running(2) as workers:

        def last(count: int, key: str) -> set[int]:
            return {pid for one, pid in [pair for pair in pairs(out) if pair[0] == key][-count:]}

        def pids() -> dict[int, WorkerProcess]:
            return {worker.process.pid: worker for worker in workers.all if worker.process is not None}

        until(lambda: last(10, "all") == pids().keys(), "both workers")
        begun = len([pair for pair in pairs(out) if pair[0] == "leader"])
        until(lambda: len([pair for pair in pairs(out) if pair[0] == "leader"]) > begun + 20, "a leader")
        (leader,) = last(10, "leader")
        kill(pids()[leader])
        until(lambda: last(10, "leader") == pids().keys() - {leader}, "the other")


def forgets(row: Row) -> None:
    """Kafka has deleted what had expired: a worker with no state begins where the changelog does."""
    records = inputs_of(row.module)
    with row.recorder() as out, row.running() as workers:
        worker = workers.all[0]
        row.write(records[:200])
        until(lambda: alive(worker) and len(out) == 200, "the first half")
        kill(worker)
        shutil.rmtree(worker.state)
        with row.recorder("counts-changelog") as changelog:
            until(lambda: changelog.is_at_end(row.conf), "the changelog")
            ends = [TopicPartition(row.full("counts-changelog"), number, end) for number, end in changelog.ends.items()]
        for done in admin(row.conf).delete_records(ends).values():
            done.result(20)
        row.write(records[200:])
        worker.start()
        until(lambda: alive(worker) and len(out) == 400, "the second half")


def sends(row: Row) -> None:
    """What the command sends comes once, beside a worker and while there is none."""
    with row.recorder() as out, row.running() as workers:
        worker = workers.all[0]
        until(lambda: said(worker, "Worker ready"), "a worker")
        command(row, "send", row.full("in"), "7")
        until(lambda: alive(worker) and len(out) == 1, "what was sent")
        kill(worker)
        command(row, "send", row.full("in"), "8")
        worker.start()
        until(lambda: alive(worker) and len(out) == 2, "what was sent meanwhile")
        assert [number for _, number in sorted(pairs(out), key=lambda pair: pair[1])] == [7, 8]


def completion(row: Row) -> None:
    """The command says what is missing."""
    line = [sys.executable, "-P", "-m", "headwater.worker", "-A", f"support.faust_rows.{row.facts.row}", "completion"]
    done = subprocess.run(line, env=row.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert "click_completion" in done.stdout + done.stderr


def signals(row: Row) -> None:
    """Signals come, and services start with the app."""
    with row.recorder() as out, row.running() as workers:
        worker = workers.all[0]
        until(lambda: alive(worker) and len(out) == 1, "what the service sends")
        until(lambda: said(worker, "assigned 5"), "the signal of an assignment")
        worker.signal(signal.SIGTERM)
        until(lambda: not worker.alive(), "its end")
        for words in ("worker init", "before the shutdown"):
            assert words in log_of(worker), words


def recovers(row: Row) -> None:
    """The callback is called at each start, when the table is there."""
    exact(row)
    seen = {key: sum(1 for one, _ in written() if one == key) for key in {key for key, _ in written()}}
    with row.running() as workers:
        worker = workers.all[0]

        def calls() -> list[str]:
            return [line for line in log_of(worker).splitlines() if "recovered" in line]

        until(lambda: alive(worker) and len(calls()) == 3, "the callback of the third start")
        assert all(f"'{key}': {count}" in calls()[-1] for key, count in seen.items())


def closes(row: Row) -> None:
    """Windows that have expired are counted out, each event once, though they are written while they expire."""
    records = inputs_of(row.module)
    with row.recorder() as out:
        row.write(records[:200])
        with row.running() as workers:
            worker = workers.all[0]
            until(lambda: alive(worker) and len(out) > 0, "the first window")
            row.write(records[200:])
            kill(worker)
            worker.start()
            until(lambda: alive(worker) and sum(number for _, number in pairs(out)) >= len(records), "all windows")
            until(lambda: alive(worker) and row.all_read("in"), "the commit of all of the input")
        until(lambda: out.is_at_end(row.conf), "the end of the output")
        assert sum(number for _, number in pairs(out)) == len(records)


DRIVES: dict[str, Callable[[Row], None]] = {
    "ask_from_pages": asks("/double/"),
    "ask_join": answers,
    "ask_map": answers,
    "commands": commands,
    "leaders": leads,
    "commands_completion": completion,
    "commands_send": sends,
    "crontab": beats,
    "sensors_prometheus": metrics,
    "services": signals,
    "tables_on_recover": recovers,
    "tables_routes": routes,
    "tasks": beats,
    "timers": beats,
    "web_pages": pages,
    "windows_expired": forgets,
    "web_tables": tables,
    "windows_closed": closes,
    "windows_closed_own": closes,
}
"""Rows that need something else than `exact`, `refused` and `ends`."""


def driven(row: Row) -> None:
    """Run a row in the way that its verdict wants, or in its own."""
    usual = refused if row.facts.verdict == "refused" else ends if row.facts.says else exact
    DRIVES.get(row.facts.row, usual)(row)


@pytest.mark.parametrize("facts", [pytest.param(one, id=one.row) for one in facts()])
def test_the_row_is_what_the_page_says(facts: Facts, stack: Endpoints, tmp_path: Path) -> None:
    driven(Row(stack, tmp_path, facts, f"r{uuid.uuid4().hex[:8]}"))
