"""Invariant 10: an agent that raises commits nothing; the record at fault is dead-lettered, or the worker stops."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import Workers
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics

pytestmark = pytest.mark.kafka
RECORDS = 900
POISON = (0, 411, 412, 899)
APP = """
from pipeline.runtime.worker import Worker
from pipeline.settings.load import load

worker = Worker(load())
app = worker.app


def write(batch):
    for key, value in zip(batch.keys(), batch.values()):
        if value.startswith(b"poison"):
            raise RuntimeError(f"cannot stomach {value!r}")
        worker.produce(worker.topics.raw, key, value, batch.partition)


@worker.agent("eat", worker.topics.ingest)
async def eat(stream):
    await worker.process(stream, "eat", write)
"""


@pytest.mark.parametrize("on_error", ["dead_letter", "stop"])
def test_invariant_10_an_agent_that_raises_does_not_commit_its_slice(
    stack: Endpoints, tmp_path: Path, on_error: str
) -> None:
    prefix = f"p{uuid.uuid4().hex[:8]}"
    conf: dict[str, Any] = {"bootstrap.servers": stack.bootstrap_servers}
    topics = Topics(Settings.model_validate({"prefix": prefix, "partitions": 1}))
    ensure(admin(conf), topics.all(), 1)
    (tmp_path / "eating.py").write_text(APP)
    values = [b"%s %d" % (b"poison" if n in POISON else b"good", n) for n in range(RECORDS)]
    producer = Producer(conf)
    for value in values:
        producer.produce(topics.ingest, value, b"key", 0)
    assert producer.flush(20) == 0
    workers = Workers(
        1,
        tmp_path,
        {
            **stack.environment(),
            "HEADWATER_PREFIX": prefix,
            "HEADWATER_PARTITIONS": "1",
            "HEADWATER_ON_ERROR": on_error,
            "PYTHONPATH": str(tmp_path),
        },
        module="eating",
    )
    with Recorder(conf, topics.raw) as raw, Recorder(conf, topics.dead_letter) as dead:
        workers.start()
        try:
            if on_error == "stop":
                until(lambda: not workers.all[0].alive(), "the end of the worker")
                assert len(raw) == 0, "nothing of the slice was committed"
                assert "cannot stomach" in workers.all[0].log.read_text()
                return
            good = [value for n, value in enumerate(values) if n not in POISON]
            until(lambda: len(raw) >= len(good) and len(dead) >= len(POISON), "all records, in one of two topics")
        finally:
            workers.stop()
        assert [record.value() for record in raw.records[0]] == good, "once each, in order"
        letters = {letter.value(): dict(letter.headers() or []) for letter in dead}
        assert set(letters) == {values[n] for n in POISON}
        assert len(dead) == len(POISON)
        assert letters[values[411]]["__connect.errors.offset"] == b"411"
        assert letters[values[411]]["__connect.errors.stage"] == b"eat"
        assert letters[values[411]]["__connect.errors.exception.class.name"] == b"RuntimeError"
