"""An app that Faust's own transport has run goes on with ours: the same file, but for one word."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from support.fleet import log_of
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import Workers
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic

pytestmark = pytest.mark.kafka
APP = """
import os
import faust

name = os.environ["MOVING_NAME"]
app = faust.App(
    name,
    broker=os.environ["MOVING_BROKER"],
    datadir=os.environ["HEADWATER_STATE_DIR"],
    web_enabled=False,
    topic_partitions=4,
    topic_replication_factor=1,
    topic_disable_leader=True,
    broker_commit_interval=0.2,
    broker_session_timeout=6,
    broker_heartbeat_interval=1,
)
words = app.topic(name + "-words", key_type=str, value_type=str)
out = app.topic(name + "-out", key_type=str, value_type=int)
counts = app.Table("counts", default=int)


@app.agent(words)
async def count(stream):
    async for key, word in stream.items():
        counts[key] += 1
        await out.send(key=key, value=counts[key])
"""
WORDS = [f"word-{number % 9}" for number in range(360)]


def run(endpoints: Endpoints, directory: Path, *schemes: str) -> dict[str, list[int]]:
    """Have each transport do its part of the words, one after the other; return the counts of each word, in their order."""
    name, conf = f"m{uuid.uuid4().hex[:8]}", {"bootstrap.servers": endpoints.bootstrap_servers}
    ensure(admin(conf), [Topic(f"{name}-{topic}", 4, topic) for topic in ("words", "out")], 1)
    share, producer = len(WORDS) // len(schemes), Producer({**conf, "enable.idempotence": True})
    with Recorder(conf, f"{name}-out") as out:
        for turn, scheme in enumerate(schemes):
            environment = {
                **os.environ,
                "MOVING_NAME": name,
                "MOVING_BROKER": f"{scheme}://{endpoints.bootstrap_servers}",
                "PYTHONPATH": str(directory),
            }
            place = directory / f"{name}-{turn}"
            place.mkdir()
            workers = Workers(1, place, environment, module="moving")
            workers.start()
            try:
                for word in WORDS[turn * share : (turn + 1) * share]:
                    producer.produce(f"{name}-words", f'"{word}"'.encode(), word.encode())
                assert producer.flush(30) == 0
                until(lambda: alive(workers) and len(out) >= (turn + 1) * share, "the counts")  # noqa: B023
            finally:
                workers.stop()
        found: dict[str, list[int]] = {}
        for record in out:
            found.setdefault((record.key() or b"").decode().strip('"'), []).append(int(record.value() or b""))
    return found


def alive(workers: Workers) -> bool:
    worker: Any = workers.all[0]
    assert worker.alive(), log_of(worker)[-3000:]
    return True


def test_an_app_goes_on_where_fausts_own_transport_has_left_it(stack: Endpoints, tmp_path: Path) -> None:
    (tmp_path / "moving.py").write_text(APP)
    wanted = {word: list(range(1, count + 1)) for word, count in Counter(WORDS).items()}
    assert run(stack, tmp_path, "headwater") == wanted
    assert run(stack, tmp_path, "kafka", "headwater") == wanted
