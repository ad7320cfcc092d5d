"""Ordinary Faust apps with tables, on the transport and the store: real workers on Apache Kafka, killed on the way."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]  # the package says so, not its types
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic

pytestmark = pytest.mark.kafka
PARTITIONS, SESSION = 4, 6.0
APP = """
import os
import faust
from pipeline.state.table import Table

name = os.environ["TABLES_NAME"]
extra = {"Table": Table} if os.environ["TABLES_OWN"] == "1" else {}
app = faust.App(
    name,
    broker="headwater://" + os.environ["TABLES_BROKER"],
    store="headwater://",
    datadir=os.environ["HEADWATER_STATE_DIR"],
    web_port=int(os.environ["HEADWATER_WEB__PORT"]),
    web_host="127.0.0.1",
    topic_partitions=4,
    topic_replication_factor=1,
    topic_allow_declare=os.environ.get("TABLES_DECLARE", "1") == "1",
    broker_session_timeout=6,
    broker_heartbeat_interval=1,
    **extra,
)
words = app.topic(name + "-words", key_type=bytes, value_type=bytes, value_serializer="raw", key_serializer="raw")
out = app.topic(name + "-out", value_serializer="json")
ticks = app.topic(name + "-ticks", value_serializer="json")
counts = app.Table("counts", default=int, extra_topic_configs={"segment.bytes": "2000000"})
lengths = app.Table("lengths", default=int).tumbling(3600.0, expires=7200.0)


@app.agent(words)
async def count(stream):
    async for word in stream:
        key = word.decode()
        counts[key] += 1
        lengths[len(key)] += 1
        await out.send(key=key, value=counts[key])


@app.timer(0.5)
async def tick():
    await ticks.send(value=sum(counts.values()))


@app.page("/count/{word}")
async def show(web, request, word):
    return web.json({"count": counts.get(word, 0), "words": len(counts)})
"""


BULK = """
from collections import Counter
import mine
from mine import app, name
from pipeline.transport import BatchSchema, batches

tallies = app.Table("tallies")
lines = app.topic(name + "-lines", schema=BatchSchema(), maxsize=4)


@app.agent(lines)
async def tally(stream):
    async for batch in batches(stream):
        added = Counter(value.decode() for value in batch.values())
        known = tallies.get_many(added)
        tallies.put_many((key, (number or 0) + added[key]) for key, number in zip(added, known))
        tallies.delete_many(key for key in added if key.startswith("gone"))


@app.page("/tallies")
async def show_tallies(web, request):
    return web.json({"tallies": dict(tallies.items()), "some": tallies.get_many(["a", "nothing"])})
"""


@dataclass
class Deployment:
    """An ordinary app with topics of its own."""

    bootstrap: str
    directory: Path
    name: str

    @property
    def conf(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.bootstrap}

    def workers(self, count: int, *, own: bool = True, declare: bool = True, module: str = "mine") -> Workers:
        environment = {
            "TABLES_NAME": self.name,
            "TABLES_BROKER": self.bootstrap,
            "TABLES_OWN": str(int(own)),
            "TABLES_DECLARE": str(int(declare)),
            "PYTHONPATH": str(self.directory),
        }
        return Workers(count, self.directory, environment, module=module)

    def produce(self, words: list[str], topic: str = "words") -> None:
        producer = Producer(self.conf)
        for word in words:
            producer.produce(f"{self.name}-{topic}", word, word)
            producer.poll(0)
        assert producer.flush(30) == 0


@pytest.fixture
def deployment(stack: Endpoints, tmp_path: Path) -> Iterator[Deployment]:
    found = Deployment(stack.bootstrap_servers, tmp_path, f"t{uuid.uuid4().hex[:8]}")
    (tmp_path / "mine.py").write_text(APP)
    topics = [Topic(f"{found.name}-{name}", PARTITIONS, name) for name in ("words", "out", "ticks", "lines")]
    ensure(admin(found.conf), topics, 1)
    yield found


def ready(worker: WorkerProcess) -> bool:
    return worker.log.exists() and "Worker ready" in worker.log.read_text(errors="replace")


def until_ready(workers: Workers) -> None:
    until(lambda: all(ready(w) or not w.alive() for w in workers.all), "workers that are ready")
    assert all(worker.alive() for worker in workers.all), workers.all[0].log.read_text()[-3000:]


def get(worker: WorkerProcess, path: str) -> dict[str, Any]:
    assert worker.process is not None
    try:
        with urllib.request.urlopen(worker.process.address + path, timeout=5) as answer:  # noqa: S310 - our own worker
            return cast("dict[str, Any]", json.loads(answer.read()))
    except (OSError, urllib.error.HTTPError):
        return {}


def watched(workers: Workers) -> bool:
    """Start again what has ended, as a supervisor would."""
    workers.watch()
    return True


def viewed(workers: Workers) -> tuple[int, int]:
    """Return what the web views of all workers say: the count of one word, and the number of words."""
    views = [get(worker, "/count/word-1") for worker in workers.all]
    return sum(view.get("count", 0) for view in views), sum(view.get("words", 0) for view in views)


@pytest.mark.parametrize(
    ("own", "fault"),
    [(True, "kill"), (True, "freeze"), (False, "kill")],
    ids=["killed", "frozen: a zombie", "killed, with Faust's own Table"],
)
def test_counts_are_exact_though_a_worker_is_lost_under_load(deployment: Deployment, own: bool, fault: str) -> None:
    dice = random.Random(1)  # noqa: S311 - the same words each time
    words = [f"word-{int(dice.paretovariate(1.0)) % 300}" for _ in range(12_000)]
    wanted = Counter(words)
    workers = deployment.workers(2, own=own)
    with (
        Recorder(deployment.conf, f"{deployment.name}-out") as out,
        Recorder(deployment.conf, f"{deployment.name}-ticks") as ticks,
    ):
        workers.start()
        try:
            until_ready(workers)
            deployment.produce(words[:8_000])
            until(lambda: len(out) > 2_000, "work under way")
            if fault == "kill":
                workers.kill(0)
            else:
                workers.freeze(0, SESSION + 3)
            workers.add()
            deployment.produce(words[8_000:])
            until(lambda: watched(workers) and len(out) >= len(words), "an output for each word")
            until(lambda: watched(workers) and not workers.frozen, "the end of the frost")
            until(lambda: watched(workers) and viewed(workers) == (wanted["word-1"], len(wanted)), "the view")
            assert len(ticks) > 0
        finally:
            workers.stop()
        seen: dict[str, list[int]] = {}
        for record in out:
            seen.setdefault((record.key() or b"").decode().strip('"'), []).append(json.loads(record.value() or b""))
    assert seen == {word: list(range(1, count + 1)) for word, count in wanted.items()}
    assert {key: number for (_, key), number in changelog(deployment, "counts").items()} == wanted
    windows = Counter[str]()
    for (_, (length, _window)), number in changelog(deployment, "lengths").items():
        windows[length] += number
    assert windows == Counter(str(len(word)) for word in words)


def changelog(deployment: Deployment, table: str) -> dict[tuple[int, Any], int]:
    """Return the last value of each partition and key in a table's changelog."""
    with Recorder(deployment.conf, f"{deployment.name}-{table}-changelog") as records:
        until(lambda: records._follower.reached.keys() == set(range(PARTITIONS)), "the ends of the changelog")
        found: dict[tuple[int, Any], int] = {}
        for record in records:
            key = json.loads(record.key() or b"")
            place = (cast("int", record.partition()), tuple(map(str, key)) if isinstance(key, list) else key)
            found[place] = json.loads(record.value() or b"0")
    return found


def test_a_changelog_that_may_not_be_made_is_an_error_at_start_and_not_a_hang(deployment: Deployment) -> None:
    workers = deployment.workers(1, declare=False)
    workers.start()
    try:
        until(lambda: not workers.all[0].alive(), "the end of the worker")
    finally:
        workers.stop()
    assert f"{deployment.name}-counts-changelog of table counts does not exist" in workers.all[0].log.read_text()


def test_a_topic_that_is_missing_is_an_error_at_start_and_not_a_hang(deployment: Deployment) -> None:
    app = deployment.directory / "mine.py"
    app.write_text(app.read_text().replace('"-words"', '"-nowhere"'))
    workers = deployment.workers(1)
    workers.start()
    try:
        until(lambda: not workers.all[0].alive(), "the end of the worker")
    finally:
        workers.stop()
    assert f"do not exist: {deployment.name}-nowhere" in workers.all[0].log.read_text()


def test_faust_makes_the_changelog_with_the_configuration_it_was_given(deployment: Deployment) -> None:
    workers = deployment.workers(1)
    workers.start()
    try:
        until_ready(workers)
    finally:
        workers.stop()
    resource = ConfigResource(ConfigResource.Type.TOPIC, f"{deployment.name}-counts-changelog")
    client = admin(deployment.conf)
    found = client.describe_configs([resource])[resource].result(20)
    assert found["segment.bytes"].value == "2000000"
    assert found["cleanup.policy"].value == "compact"


def test_a_batch_reads_writes_and_deletes_many_keys_at_once(deployment: Deployment) -> None:
    (deployment.directory / "bulk.py").write_text(BULK)
    wanted = {"a": 500, "b": 500}
    workers = deployment.workers(1, module="bulk")
    workers.start()
    try:
        until_ready(workers)
        deployment.produce(["a", "b", "gone"] * 500, "lines")
        until(lambda: get(workers.all[0], "/tallies").get("tallies") == wanted, "the tallies")
        assert get(workers.all[0], "/tallies")["some"] == [500, None]
        workers.kill(0)
        until(lambda: not workers.all[0].alive(), "the end of the worker")
        workers.all[0].log.unlink()
        workers.watch()
        until_ready(workers)
        until(lambda: get(workers.all[0], "/tallies").get("tallies") == wanted, "the tallies, recovered")
    finally:
        workers.stop()
