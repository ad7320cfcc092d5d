"""Faust's stress applications, on a real broker: two workers, ended and killed in turns, as Faust's killer.py does for hours.

What they say themselves is what counts: they log each number that comes twice or is missing, and whether events come in.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path

from confluent_kafka import TopicPartition
from confluent_kafka.cimpl import NewTopic

from headwater.lab.processes import tethered
from pipeline.transport import clients
from upstream.results import Outcome

PARTITIONS = 4
TOPICS = ("f-systemcheck", "f-errors", "f-stress-withdrawals")
"""What they write to and do not declare."""
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL)
"""One worker after the other gets one of these, and is started again."""
READY = "Worker ready"
READY_SECONDS, END_SECONDS, CALM_SECONDS, LAST_SECONDS = 120.0, 60.0, 8.0, 25.0
MESSAGES = 20_000
HERE = Path(__file__).parent
CHECK = re.compile(
    r"\[\^-*StressApp\]: [\w-]+:(?P<check>[\w-]+) (?P<what>.+?)(?: \(x(?P<faults>\d+)\))?: was .* now .*"
)
SLOW = 4
"""So many looks without progress are what Faust calls slow."""
UNSENT = "_on_published error"
"""What Faust logs of a send that failed."""
CHECKS = {
    "simple": {"events_total": ""},
    "forwarder": {
        "events_total": "",
        "counter_received": "",
        "duplicates": "Found duplicate number",
        "gaps": "Sequence gap",
    },
    "tables": {
        "events_total": "",
        "starved-partitions": "",
        "table-found-double-count": "Found duplicate number",
        "table-found-missing-update": "Sequence gap",
    },
}
"""The checks of each application, and the line that says that one failed; '' for those that want progress."""
IDS = {"simple": "f-stress-simple-v7", "forwarder": "f-stress-dedupe-v7", "tables": "f-stress-tables-v7"}


@dataclass
class Worker:
    """A worker with a state directory of its own."""

    name: str
    number: int
    source: Path
    python: Path
    directory: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0
    troubles: list[str] = field(default_factory=list)
    """Starts and ends that did not come in time, and ends that were asked for and not with 0."""

    @property
    def log(self) -> Path:
        """The log of its present life."""
        return self.directory / f"{self.name}-{self.number}-{self.lives}.log"

    def start(self) -> None:
        """Start it."""
        self.lives += 1
        words = [str(self.python), str(HERE / "stress_app.py"), self.name, "worker", "-l", "info", "--without-web"]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                words,
                cwd=self.source,
                env={**self.environment, "FAUST_DATADIR": str(self.directory / f"{self.name}-{self.number}")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> bool:
        """Return whether it gets ready in time."""
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS
        while READY not in self.log.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.troubles.append(f"{self.log}: not ready, exit code {self.process.poll()}")
                return False
            time.sleep(0.2)
        return True

    def end(self, by: signal.Signals) -> None:
        """Send a signal, and wait for the end."""
        assert self.process is not None
        self.process.send_signal(by)
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
            self.troubles.append(f"{self.log}: did not end within {END_SECONDS:.0f} s of {by.name}")
        else:
            if by != signal.SIGKILL and code != 0:
                self.troubles.append(f"{self.log}: exit code {code} after {by.name}")


@dataclass
class Stress:
    """Runs the applications; `python` has Headwater installed, `source` is the directory of Faust's tests."""

    servers: str
    source: Path
    python: Path
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """What workers get."""
        return {
            **os.environ,
            "STRESS_BROKER": f"headwater://{self.servers}",
            "STRESS_STORE": "headwater://",
            "STRESS_PARTITIONS": str(PARTITIONS),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }

    def run(self, name: str) -> list[Outcome]:
        """Run one application, and return what its checks say."""
        workers = [
            Worker(name, number, self.source, self.python, self.directory, self.environment) for number in (1, 2)
        ]
        try:
            with self._producing(name):
                self._hurt(workers)
            time.sleep(LAST_SECONDS)
            for worker in workers:
                worker.end(signal.SIGTERM)
        finally:
            for worker in workers:
                if worker.process is not None and worker.process.poll() is None:
                    worker.process.kill()
                    worker.process.wait()
        logs = {path: path.read_text(errors="replace") for path in sorted(self.directory.glob(f"{name}-?-*.log"))}
        ends = [trouble for worker in workers for trouble in worker.troubles]
        outcomes = [*verdicts(name, list(logs.values()), [logs[worker.log] for worker in workers])]
        commands = [path.read_text(errors="replace") for path in self.directory.glob(f"{name}-produce.log")]
        unsent = [line for log in (*logs.values(), *commands) for line in log.splitlines() if UNSENT in line]
        outcomes.append(_outcome(name, "what is sent is written", unsent))
        outcomes.append(_outcome(name, "workers start and end", ends))
        if name == "simple":
            outcomes.append(_outcome(name, "all that was produced is read", self._unread()))
        if name == "tables":
            outcomes.append(_outcome(name, "the table is what its topic says", self._inconsistent()))
        return outcomes

    def prepare(self) -> None:
        """Create the topics that they take for granted."""
        admin = clients.admin(self._conf)
        new = [NewTopic(topic, num_partitions=PARTITIONS, replication_factor=1) for topic in TOPICS]
        for future in admin.create_topics(new).values():
            future.result(30)

    def _hurt(self, workers: list[Worker]) -> None:
        for worker in workers:
            worker.start()
        ready = [worker.wait_until_ready() for worker in workers]
        for turn, by in enumerate(SIGNALS if all(ready) else ()):
            time.sleep(CALM_SECONDS)
            worker = workers[turn % len(workers)]
            worker.end(by)
            worker.start()
            if not worker.wait_until_ready():
                return

    @contextmanager
    def _producing(self, name: str) -> Iterator[None]:
        """Meanwhile, run the command that writes; it does not end by itself."""
        if name != "simple":
            yield
            return
        words = [
            self.python,
            HERE / "stress_app.py",
            name,
            "produce",
            "--max-latency",
            "0.01",
            "--max-messages",
            MESSAGES,
        ]
        with (self.directory / f"{name}-produce.log").open("wb") as output:
            producer = subprocess.Popen(
                tethered([str(word) for word in words]),
                cwd=self.source,
                env={**self.environment, "FAUST_DATADIR": str(self.directory / "produce")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield
        finally:
            os.killpg(producer.pid, signal.SIGTERM)
            try:
                producer.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(producer.pid, signal.SIGKILL)
                producer.wait()

    @property
    def _conf(self) -> dict[str, str]:
        return {"bootstrap.servers": self.servers}

    def _positions(self, group: str, topic: str) -> dict[int, tuple[int, int]]:
        """Return the end of each partition, and the offset up to which the group has read it."""
        reader = clients.consumer(self._conf, group)
        try:
            tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            done = {tp.partition: max(0, tp.offset) for tp in reader.committed(tps, 30)}
            return {tp.partition: (reader.get_watermark_offsets(tp, 30)[1], done[tp.partition]) for tp in tps}
        finally:
            reader.close()

    def _unread(self) -> list[str]:
        topic = "f-stress-withdrawals"
        found = self._positions(IDS["simple"], topic)
        said = [f"{topic}[{n}]: {end} written, {done} read" for n, (end, done) in found.items() if done < end]
        return said if any(done for _, done in found.values()) else [f"{topic}: nothing was read", *said]

    def _inconsistent(self) -> list[str]:
        """Look, as Faust's consistency_checker.py does, whether the table has the last number of each partition, there."""
        id_ = IDS["tables"]
        changelog = self._last(f"{id_}-counted-changelog")
        topics = clients.admin(self._conf).list_topics(timeout=30).topics
        source = next(topic for topic in topics if topic.startswith(id_) and topic.endswith("process"))
        read = {
            number: done for number, (_, done) in self._positions(id_, source).items()
        }  # what came later is in no table
        wanted = {(number, str(number)): value for (number, _), value in self._last(source, read).items()}
        missing = [
            f"{place}: {value}, not {changelog.get(place)}"
            for place, value in wanted.items()
            if changelog.get(place) != value
        ]
        return missing + [f"{place}: {source} does not have it" for place in changelog if place not in wanted]

    def _last(self, topic: str, before: Mapping[int, int] | None = None) -> dict[tuple[int, str], int]:
        """Return the last value of each key, by partition and key; `before`: below these offsets."""
        reader = clients.consumer(self._conf, "faust-tests", enable_partition_eof=True)
        found, left = dict[tuple[int, str], int](), set(range(PARTITIONS))
        reader.assign([TopicPartition(topic, number, 0) for number in left])
        deadline = time.monotonic() + 60
        try:
            while left and time.monotonic() < deadline:
                record = reader.poll(1)
                if record is None:
                    continue
                number = record.partition()
                assert number is not None
                if record.error():
                    left.discard(number)
                    continue
                value, offset = record.value(), record.offset()
                if value is not None and offset is not None and (before is None or offset < before.get(number, 0)):
                    found[number, (record.key() or b"").decode()] = json.loads(value)
        finally:
            reader.close()
        return found


def verdicts(name: str, logs: list[str], last: list[str]) -> Iterator[Outcome]:
    """Read what the checks of an application have logged: `logs` of all lives of its workers, `last` of their last ones."""
    for check, bad in CHECKS[name].items():
        if bad:
            said = [line for log in logs for line in log.splitlines() if bad in line]
            yield _outcome(name, check, said)
            continue
        # A worker that was killed waits first, until the session of its former life is over.
        found = [[line for line in CHECK.finditer(log) if line["check"] == check] for log in last]
        since = [list(dropwhile(lambda line: line["faults"], lines)) for lines in found]
        faults = [line[0] for lines in since for line in lines if int(line["faults"] or 0) >= SLOW]
        yield _outcome(name, check, faults or ([] if any(since) else ["no progress was reported"]))


def _outcome(name: str, check: str, said: list[str]) -> Outcome:
    test = f"tests/stress/tests/{name}::{check}"
    return Outcome(test, "failed", f"{len(said)} x: " + "\n".join(said[:5])) if said else Outcome(test, "passed")
