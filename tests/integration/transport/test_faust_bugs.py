"""What Faust does wrong with its own transports, and must not do with ours: an ordinary app, as real workers.

Others are where they fit better: murmur2 in `tests/unit/transport/test_transport.py`, table recovery in `test_tables.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from support.fleet import Fleet, log_of
from support.paths import TESTS
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic
from pipeline.transport import Slice
from pipeline.transport.partition import partition_of
from pipeline.transport.transaction import Transaction

pytestmark = pytest.mark.kafka


@dataclass
class Faulty:
    """Topics of its own, and workers of `tests/support/faulty_faust_app.py`."""

    endpoints: Endpoints
    directory: Path
    name: str

    def __post_init__(self) -> None:
        self.conf: dict[str, Any] = {"bootstrap.servers": self.endpoints.bootstrap_servers}
        self.words, self.out = f"{self.name}.words", f"{self.name}.out"
        ensure(admin(self.conf), [Topic(self.words, 2, "words"), Topic(self.out, 2, "what came of them")], 1)

    @contextmanager
    def running(self, agent: str, count: int = 1) -> Iterator[Workers]:
        environment = {
            **os.environ,
            **self.endpoints.environment(),
            "FAULTY_NAME": self.name,
            "FAULTY_AGENT": agent,
            "FAULTY_DIRECTORY": str(self.directory),
            "PYTHONPATH": str(TESTS),
        }
        workers = Workers(count, self.directory, environment, module="support.faulty_faust_app")
        try:
            workers.start()
            yield workers
        finally:
            workers.stop()

    def write(self, *values: bytes, **more: Any) -> None:
        producer = Producer(self.conf)
        for value in values:
            producer.produce(self.words, value, b"key", 0, **more)
        assert producer.flush(20) == 0

    def committed(self) -> int:
        """Return the stable offset of the group in partition 0; -1001 for none."""
        consumer = Consumer({**self.conf, "group.id": self.name, "isolation.level": "read_committed"})
        try:
            return int(consumer.committed([TopicPartition(self.words, 0)], 30)[0].offset)
        finally:
            consumer.close()


@pytest.fixture
def faulty(stack: Endpoints, tmp_path: Path) -> Faulty:
    return Faulty(stack, tmp_path, f"f{uuid.uuid4().hex[:8]}")


def has_its_share(worker: WorkerProcess) -> bool:
    return "in all" in log_of(worker)


@pytest.mark.parametrize("agent", ["raise_at_poison", "take"])
def test_faust_bug_acks_in_finally_and_restarts_do_not_hide_an_agent_that_raises(faulty: Faulty, agent: str) -> None:
    """Faust acks what an agent raised at, and starts the agent again: 1,000 of 1,000 words were committed so."""
    faulty.write(b"good", b"poison", b"better")
    with Recorder(faulty.conf, faulty.out) as out, faulty.running(agent) as workers:
        until(lambda: not workers.all[0].alive(), "the end of the worker")
        log = log_of(workers.all[0])
        assert "cannot stomach it" in log
        assert log.count("headwater: an agent failed") == 1, "it ended at the first time, and said why"
        assert faulty.committed() < 0
        assert len(out) == 0


def test_faust_bug_no_offset_is_committed_past_a_message_in_hand(faulty: Faulty, tmp_path: Path) -> None:
    """Acks out of order, on a topic with gaps: markers of transactions, and records that were aborted."""
    writer = Transaction(faulty.conf, tmp_path / "writer", "writer")
    writer.start()
    for value in (b"first", b"aborted", b"held", b"aborted", b"later", b"last"):
        writer.produce(faulty.words, b"key", value, 0)
        if value == b"aborted":
            writer.spoil("the test wants it")
        writer.commit(Slice(writer.producer), b"not asked for")
    writer.close()
    with Recorder(faulty.conf, faulty.words) as words:
        until(lambda: len(words) == 4, "four words, eight gaps")
        held = next(record.offset() or 0 for record in words if record.value() == b"held")
    with Recorder(faulty.conf, faulty.out) as out:
        with faulty.running("hold_one") as workers:
            until((tmp_path / "holding").exists, "a message that is in hand")
            begun = time.monotonic()
            until(lambda: time.monotonic() > begun + 1.0, "several times the commit interval")
            assert faulty.committed() <= held
            workers.all[0].signal(signal.SIGKILL)
            until(lambda: not workers.all[0].alive(), "its death")
        (tmp_path / "gate").touch()
        with faulty.running("hold_one"):
            until(lambda: len(out) >= 4, "four words")
        assert sorted(record.value() or b"" for record in out) == [b"first", b"held", b"last", b"later"]


@pytest.mark.parametrize("agent", ["copy", "take"])
def test_faust_bug_a_revocation_does_not_wait_for_the_next_event(faulty: Faulty, agent: str) -> None:
    """An ordinary agent acks a message when it asks for the next one, and `take` when its time is up."""
    faulty.write(*(b"%d" % number for number in range(15)))
    with Recorder(faulty.conf, faulty.out) as out, faulty.running(agent) as workers:
        until(lambda: len(out) == 15 or (agent == "take" and len(out) >= 10), "all words, and nothing after them")
        begun = time.monotonic()
        workers.add()
        until(lambda: has_its_share(workers.all[1]), "a share for the second worker", 30)
        assert time.monotonic() - begun < 30
        until(lambda: len(out) >= 15, "15 words")
        assert sorted(int(record.value() or b"") for record in out) == list(range(15))


def test_faust_bug_the_event_loop_runs_on_during_a_commit(faulty: Faulty) -> None:
    with Recorder(faulty.conf, faulty.out) as out, faulty.running("copy_slowly") as workers:
        until(lambda: has_its_share(workers.all[0]), "a worker with partitions")
        (faulty.directory / "worst").unlink(missing_ok=True)
        faulty.write(b"one")
        until(lambda: len(out) == 1, "one word, committed 2 s later")
        assert float((faulty.directory / "worst").read_text() or "0") < 1.5


def test_faust_bug_headers_and_timestamps_of_send_are_kept(faulty: Faulty) -> None:
    with Recorder(faulty.conf, faulty.out) as out, faulty.running("copy"):
        faulty.write(b"one", headers=[("trace", b"abc")], timestamp=1_700_000_000_123)
        until(lambda: len(out) == 1, "one word")
        (record,) = out
    assert record.headers() == [("trace", b"abc")]
    assert record.timestamp()[1] == 1_700_000_000_123
    assert record.partition() == partition_of(b"key", 2), "where a Java client would have put it"


def test_faust_bug_a_flush_does_not_give_up_before_all_is_sent(faulty: Faulty) -> None:
    """All 5,000 belong to the transaction that commits the offset: at once when it is there, so are they."""
    with Recorder(faulty.conf, faulty.out) as out, faulty.running("flood"):
        faulty.write(b"one")
        until(lambda: faulty.committed() == 1, "the offset")
        ends = end_offsets(faulty)
        until(lambda: all(out.reached.get(p, 0) >= end for p, end in ends.items()), "what was committed with it")
        assert [record.value() for record in out] == [b"%d" % number for number in range(5_000)]


def end_offsets(faulty: Faulty) -> dict[int, int]:
    consumer = Consumer({**faulty.conf, "group.id": "nobody"})
    try:
        return {p: consumer.get_watermark_offsets(TopicPartition(faulty.out, p), 10)[1] for p in range(2)}
    finally:
        consumer.close()


def test_faust_bug_sigterm_during_a_rebalance_is_an_ordinary_end(faulty: Faulty) -> None:
    faulty.write(*(b"%d" % number for number in range(100)))
    with Recorder(faulty.conf, faulty.out) as out, faulty.running("copy_terminated") as workers:
        until(lambda: len(out) == 100, "100 words")
        workers.add()
        until((faulty.directory / "terminated").exists, "a rebalance, and SIGTERM in it")
        until(lambda: sum(worker.alive() for worker in workers.all) == 1, "the end of one")
        faulty.write(*(b"%d" % number for number in range(100, 200)))
        until(lambda: len(out) >= 200, "100 more, by the other")
        assert sorted(int(record.value() or b"") for record in out) == list(range(200))
        logs = "".join(map(log_of, workers.all))
    assert "Traceback" not in logs
    assert "wakeup" not in logs


def test_faust_bug_the_level_warn_does_not_log_at_debug(stack: Endpoints, tmp_path: Path) -> None:
    """Under `-l warn` Faust sets the root logger to DEBUG, for a spinner: each log.debug builds a record."""
    fleet = Fleet(stack, tmp_path)
    program = (
        "import logging, sys\n"
        "from pipeline.worker import app\n"
        "worker = app.Worker(loglevel='warn')\n"
        "worker._setup_logging()\n"
        "sys.stdout.write(str(logging.getLogger().level))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=fleet.environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert int((done.stdout + done.stderr).split()[-1]) >= 30
