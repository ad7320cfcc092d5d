"""What an ordinary Faust app asks and sends outside of its agents: real workers and commands on Apache Kafka."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.fleet import log_of
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic

pytestmark = pytest.mark.kafka
APP = """
import asyncio
import os
import faust

name = os.environ["ASKING_NAME"]
app = faust.App(
    name,
    broker="headwater://" + os.environ["ASKING_BROKER"],
    store="headwater://",
    datadir=os.environ["HEADWATER_STATE_DIR"],
    web_port=int(os.environ.get("HEADWATER_WEB__PORT", "6066")),
    web_bind="127.0.0.1",
    web_host="127.0.0.1",
    topic_partitions=4,
    topic_replication_factor=1,
    broker_session_timeout=6,
    broker_heartbeat_interval=1,
)
numbers = app.topic(name + "-numbers", value_type=int)
out = app.topic(name + "-out", value_type=int)


@app.agent(value_type=int)
async def double(stream):
    async for number in stream:
        yield number * 2


@app.agent(value_type=int)
async def silent(stream):
    async for number in stream:
        pass


@app.agent(numbers)
async def copy(stream):
    async for number in stream:
        await out.send(value=number)


@app.page("/ask/{number}")
async def ask(web, request, number):
    return web.json({"answer": await double.ask(int(number), key=number)})


@app.page("/join/{count}")
async def join(web, request, count):
    return web.json({"answer": sum(await double.join(range(int(count)))), "map": len([n async for n in double.map(range(9))])})


@app.page("/late")
async def late(web, request):
    try:
        await asyncio.wait_for(silent.ask(1), 0.2)
    except asyncio.TimeoutError:
        return web.json({"answer": "none"})


@app.command()
async def askit(self):
    self.say(str(await double.ask(21)))
"""


@dataclass
class Deployment:
    """An app of its own."""

    endpoints: Endpoints
    directory: Path
    name: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ASKING_NAME": self.name,
            "ASKING_BROKER": self.endpoints.bootstrap_servers,
            "PYTHONPATH": str(self.directory),
        }

    def workers(self, count: int) -> Workers:
        return Workers(count, self.directory, self.environment, module="asking")

    def out(self) -> Recorder:
        return Recorder({"bootstrap.servers": self.endpoints.bootstrap_servers}, f"{self.name}-out")

    def command(self, *words: str, broker: str = "") -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-P", "-m", "headwater.worker", "-A", "asking", *words]
        state = {"HEADWATER_STATE_DIR": str(self.directory / "worker-1.state")}
        environment = {**self.environment, **state, **({"ASKING_BROKER": broker} if broker else {})}
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def deployment(stack: Endpoints, tmp_path: Path) -> Deployment:
    (tmp_path / "asking.py").write_text(APP)
    found = Deployment(stack, tmp_path, f"a{uuid.uuid4().hex[:8]}")
    topics = [Topic(f"{found.name}-{topic}", 4, topic) for topic in ("numbers", "out")]
    ensure(admin({"bootstrap.servers": stack.bootstrap_servers}), topics, 1)
    return found


@pytest.fixture
def workers(deployment: Deployment) -> Iterator[Workers]:
    """One worker, ready, and a second one that is not started."""
    found = deployment.workers(2)
    found.all[0].start()
    try:
        until(lambda: get(found.all[0], "/ask/1") == 2, "the first answer")
        yield found
    finally:
        found.stop()


def get(worker: WorkerProcess, path: str) -> Any:
    assert worker.alive(), log_of(worker)[-3000:]
    assert worker.process is not None
    try:
        with urllib.request.urlopen(worker.process.address + path, timeout=30) as answer:  # noqa: S310 - our own worker
            return json.loads(answer.read())["answer"]
    except OSError:
        return None


def test_answers_come_one_after_the_other_and_many_at_once(workers: Workers) -> None:
    worker = workers.all[0]
    assert [get(worker, f"/ask/{number}") for number in range(5)] == [0, 2, 4, 6, 8]
    assert get(worker, "/join/1200") == sum(range(1200)) * 2, "more answers than Faust's own queue takes"


def test_an_answer_that_does_not_come_hinders_nobody(workers: Workers) -> None:
    worker = workers.all[0]
    assert get(worker, "/late") == "none"
    assert get(worker, "/ask/4") == 8


def test_answers_come_through_a_rebalance(workers: Workers) -> None:
    asking, other = workers.all
    other.start()
    number = 0
    while "in all" not in log_of(other):  # it has its partitions
        number += 1
        assert get(asking, f"/ask/{number}") == number * 2
    for number in range(20):  # whichever of the two has the partition
        assert get(asking, f"/ask/{number}") == number * 2
    other.signal(signal.SIGKILL)
    until(lambda: not other.alive(), "its death")
    for number in range(20):  # those of the dead one, when its session is over
        assert get(asking, f"/ask/{number}") == number * 2


def test_a_command_asks_beside_the_worker(deployment: Deployment, workers: Workers) -> None:
    done = deployment.command("askit")
    assert (done.returncode, "42" in done.stdout) == (0, True), done.stderr


def test_what_faust_send_has_sent_is_there_although_the_state_directory_is_a_workers(
    deployment: Deployment, workers: Workers
) -> None:
    with deployment.out() as out:
        for number in range(3):
            done = deployment.command("send", f"{deployment.name}-numbers", str(number))
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout.strip().splitlines()[-1])["topic"] == f"{deployment.name}-numbers"
        until(lambda: len(out) == 3, "what the agent makes of it")
        assert sorted(int(record.value() or b"") for record in out) == [0, 1, 2]


def test_faust_send_says_so_when_no_broker_answers(deployment: Deployment) -> None:
    done = deployment.command("send", f"{deployment.name}-numbers", "1", broker="127.0.0.1:9?message.timeout.ms=2000")
    assert done.returncode != 0
    assert "was not delivered" in done.stdout + done.stderr
