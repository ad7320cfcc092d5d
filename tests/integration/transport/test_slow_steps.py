"""A slice has a bound in time: slow steps commit, and what is too slow by itself is named. On a real broker."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from support.fleet import log_of
from support.transform_workers import Flowing
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import Workers
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic

pytestmark = pytest.mark.kafka
QUICKLY = json.dumps({"transaction.timeout.ms": "6000"})
"""So that what is too slow is so after four seconds."""
STEPS = """
import time
from pipeline.steps.python import enrich


@enrich("wait")
def wait(change):
    time.sleep({seconds})
    return {{"waited": True}}


@enrich("stuck")
def stuck(change):
    if change.key["id"] == "slow":
        time.sleep(6)
    return {{"waited": True}}
"""


def slow(
    stack: Endpoints, directory: Path, step: str, *, seconds: float = 0.0, on_error: str = "dead_letter"
) -> Flowing:
    (directory / "slow_steps.py").write_text(STEPS.format(seconds=seconds))
    flow = {"name": "all", "from": ["orders"], "enrich": [{"kind": "python", "name": step}], "to": "all"}
    variables = {
        "PYTHONPATH": str(directory),
        "HEADWATER_MODULES": '["slow_steps"]',
        "HEADWATER_ON_ERROR": on_error,
        "HEADWATER_KAFKA__PROPERTIES": QUICKLY,
    }
    return Flowing(stack, directory, [flow], variables=variables)


def test_a_backlog_of_many_transactions_of_work_is_committed_bit_by_bit(stack: Endpoints, tmp_path: Path) -> None:
    flowing = slow(stack, tmp_path, "wait", seconds=0.01)
    for number in range(1_500):  # 15 seconds of work, where a transaction may last 6
        flowing.change(f"k{number % 20}", {"n": number}, flush=number % 500 == 499)
    with flowing.recorded(flowing.topics.sink("all")) as sink, flowing.fleet.running() as workers:
        until(lambda: len(sink) > 0, "the first of them, long before the last", seconds=30)
        assert len(sink) < 1_500
        until(lambda: len(sink) == 1_500, "all of them")
        assert "will be processed again" not in log_of(workers.all[0])


def test_a_change_that_is_too_slow_by_itself_is_a_dead_letter_and_the_others_continue(
    stack: Endpoints, tmp_path: Path
) -> None:
    flowing = slow(stack, tmp_path, "stuck")
    with (
        flowing.recorded(flowing.topics.sink("all")) as sink,
        flowing.recorded(flowing.topics.dead_letter) as letters,
        flowing.fleet.running(),
    ):
        for number in range(20):
            flowing.change("slow" if number == 11 else f"k{number}", {"n": number}, flush=number == 19)
        until(lambda: (len(sink), len(letters)) == (19, 1), "all changes")
    (letter,) = letters
    reason = bytes(dict(letter.headers() or [])["__connect.errors.exception.message"] or b"").decode()  # type: ignore[arg-type]
    assert f"{flowing.topics.raw}[" in reason
    assert "the agent transform" in reason
    assert "the flow all" in reason
    assert "s by itself" in reason


def test_with_on_error_stop_the_worker_ends_and_names_what_is_too_slow(stack: Endpoints, tmp_path: Path) -> None:
    flowing = slow(stack, tmp_path, "stuck", on_error="stop")
    workers = flowing.fleet.workers(1)
    workers.start()
    try:
        flowing.change("slow", {"n": 1})
        until(lambda: not workers.all[0].alive(), "the end of the worker")
    finally:
        workers.stop()
    last = log_of(workers.all[0]).rpartition("CRITICAL")[2]
    assert "the agent transform" in last
    assert f"{flowing.topics.raw}[" in last
    assert "by itself" in last


APP = """
import asyncio
import os
import faust
from pipeline.state.table import Table

app = faust.App(
    {name!r}, broker="headwater://{servers}", store="headwater://", Table=Table, topic_partitions=1,
    topic_replication_factor=1, datadir={datadir!r}, web_port=int(os.environ["HEADWATER_WEB__PORT"]),
)
app.transport.properties = {{"transaction.timeout.ms": "6000"}}
words = app.topic({name!r} + "-words", value_serializer="raw", value_type=bytes)
out = app.topic({name!r} + "-out", value_serializer="raw", value_type=bytes)


@app.agent(words)
async def say(stream):
    async for word in stream:
        await out.send(value=b"begun " + word)
        if word == b"slow":
            await asyncio.sleep(8)
        await out.send(value=b"done " + word)
"""


def test_an_event_that_takes_longer_than_a_transaction_ends_an_ordinary_app_in_words(
    stack: Endpoints, tmp_path: Path
) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    conf: dict[str, Any] = {"bootstrap.servers": stack.bootstrap_servers}
    ensure(admin(conf), [Topic(f"{name}-words", 1, "words"), Topic(f"{name}-out", 1, "said")], 1)
    (tmp_path / "data").mkdir()
    app = APP.format(name=name, servers=stack.bootstrap_servers, datadir=str(tmp_path / "data"))
    (tmp_path / "saying.py").write_text(app)
    producer = Producer(conf)
    for word in ("quick", "slow"):
        producer.produce(f"{name}-words", word.encode(), partition=0)
    assert producer.flush(20) == 0
    workers = Workers(1, tmp_path, {"PYTHONPATH": str(tmp_path)}, module="saying")
    with Recorder(conf, f"{name}-out") as out:
        workers.start()
        try:
            until(lambda: not workers.all[0].alive(), "the end of the worker")
        finally:
            workers.stop()
        said = workers.all[0].log.read_text()
        assert f"the agent say: {name}-words[0] offset 1 took" in said
        assert "SystemError" not in said
        assert [record.value() for record in out] == [b"begun quick", b"done quick"], "what was done in time, once"
