"""One record's error is one record's: what the broker refuses is a dead letter, the others go on. On a real broker."""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Message, Producer
from conftest import Headwater
from mypy_boto3_dynamodb import DynamoDBClient
from support.fleet import Fleet, log_of
from support.transform_workers import Flowing
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic

pytestmark = pytest.mark.kafka
SMALL = {"max.message.bytes": "20000", "retention.ms": "-1"}
RANDOM = random.Random(1)  # noqa: S311 - what cannot be compressed


def large(size: int = 60_000) -> str:
    return RANDOM.randbytes(size // 2).hex()


def said(letter: Message) -> dict[str, str]:
    headers = cast("list[tuple[str, bytes]]", letter.headers() or [])
    return {name: value.decode(errors="replace") for name, value in headers}


def flowing_to(stack: Endpoints, directory: Path, *flows: dict[str, Any], small: str) -> Flowing:
    """Return workers of flows; the topic of one sink was made by somebody else, for small records."""
    prefix = f"t{uuid.uuid4().hex[:8]}"
    conf = {"bootstrap.servers": stack.bootstrap_servers}
    ensure(admin(conf), [Topic(f"{prefix}.sink.{small}", 2, "small", SMALL)], 1)
    return Flowing(stack, directory, list(flows), prefix=prefix)


def test_a_change_that_one_sink_topic_refuses_is_a_dead_letter_of_its_flow_and_all_else_continues(
    stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    plain = {"name": "plain", "from": ["orders"], "envelope": {"kind": "plain"}, "to": "plain"}
    small = {"name": "small", "from": ["orders"], "to": "small"}
    flowing = flowing_to(stack, tmp_path, plain, small, small="small")
    checked = headwater("check", **flowing.environment())
    assert "takes records of 20,000 bytes at most (max.message.bytes)" in checked.stdout
    topics = flowing.topics
    with (
        flowing.recorded(topics.sink("plain")) as plains,
        flowing.recorded(topics.sink("small")) as smalls,
        flowing.recorded(topics.dead_letter) as letters,
        flowing.fleet.running(),
    ):
        for number in range(300):
            big = {"text": large()} if number in {7, 100, 299} else {}
            flowing.change(f"k{number % 20}", {"n": number, **big}, flush=number % 50 == 49)
        flowing.change("last", {"n": 300})
        until(lambda: (len(plains), len(smalls), len(letters)) == (301, 298, 3), "all changes, in both sinks or not")
        flowing.change("after", {"n": 301})
        until(lambda: len(smalls) == 299, "what comes after")
    for letter in letters:
        headers = said(letter)
        assert headers["headwater.flow"] == "small"
        assert headers["__connect.errors.stage"] == "transform"
        assert topics.sink("small") in headers["__connect.errors.exception.message"]
        assert "max.message.bytes" in headers["__connect.errors.exception.message"]
        assert len(letter.value() or b"") > 60_000, "the change as it is on raw"
    per_key: dict[bytes, list[int]] = {}
    for record in smalls:
        change = json.loads(record.value() or b"")
        per_key.setdefault(record.key() or b"", []).append(int(change["dynamodb"]["NewImage"]["n"]["N"]))
    assert all(found == sorted(found) for found in per_key.values()), "in the order of each item"


def test_a_dead_letter_too_large_for_its_topic_loses_its_value_and_not_the_worker(
    stack: Endpoints, tmp_path: Path
) -> None:
    prefix = f"t{uuid.uuid4().hex[:8]}"
    conf = {"bootstrap.servers": stack.bootstrap_servers}
    ensure(
        admin(conf),
        [Topic(f"{prefix}.{name}", n, "small", SMALL) for name, n in (("sink.s", 2), ("dead-letter", 1))],
        1,
    )
    flowing = Flowing(stack, tmp_path, [{"name": "s", "from": ["orders"], "to": "s"}], prefix=prefix)
    with (
        flowing.recorded(flowing.topics.sink("s")) as sunk,
        flowing.recorded(flowing.topics.dead_letter) as letters,
        flowing.fleet.running(),
    ):
        flowing.change("k1", {"n": 1, "text": large()})
        flowing.change("k2", {"n": 2})
        until(lambda: (len(sunk), len(letters)) == (1, 1), "both changes")
    (letter,) = letters
    assert letter.value() is None
    assert int(said(letter)["headwater.value_left_out"]) > 60_000
    assert said(letter)["__connect.errors.topic"] == flowing.topics.raw


def test_a_template_that_makes_no_name_of_a_topic_is_that_changes_error(stack: Endpoints, tmp_path: Path) -> None:
    flowing = Flowing(stack, tmp_path, [{"name": "all", "to": "t-{table}"}, {"name": "fix", "to": "fix"}])
    tables = ["orders", "../../etc/passwd", "a b!", "x" * 300, "o.rders", "orders"]
    with (
        flowing.recorded(flowing.topics.sink("fix")) as fixed,
        flowing.recorded(flowing.topics.dead_letter) as letters,
        flowing.fleet.running(),
    ):
        for number, table in enumerate(tables):
            flowing.change(f"k{number}", {"n": number}, table)
        until(lambda: (len(fixed), len(letters)) == (len(tables), 3), "all changes")
    assert {said(letter)["headwater.flow"] for letter in letters} == {"all"}
    with flowing.recorded(flowing.topics.sink("t-orders")) as there:
        until(lambda: len(there) == 2, "those with a name")


def test_a_record_that_the_ingest_topic_refuses_is_a_dead_letter_and_its_shard_continues(
    stack: Endpoints, tmp_path: Path, dynamodb: DynamoDBClient
) -> None:
    prefix, table = f"t{uuid.uuid4().hex[:8]}", f"small-{uuid.uuid4().hex[:8]}"
    conf = {"bootstrap.servers": stack.bootstrap_servers}
    ensure(admin(conf), [Topic(f"{prefix}.ingest", 2, "small", SMALL)], 1)
    dynamodb.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    for number in range(30):
        text = large() if number in {3, 17} else "small"
        dynamodb.put_item(TableName=table, Item={"id": {"S": f"k{number}"}, "text": {"S": text}})
    sources = json.dumps([{"tables": [table], "discovery_interval": 1.0}])
    settings = {"HEADWATER_AGENTS": '["ingest"]', "HEADWATER_SOURCES": sources}
    fleet = Fleet(stack, tmp_path, settings, partitions=2, prefix=prefix)
    with (
        Recorder(conf, fleet.topics.ingest) as ingest,
        Recorder(conf, fleet.topics.dead_letter) as letters,
        fleet.running(),
    ):
        until(lambda: (len(ingest), len(letters)) == (28, 2), "all changes")
        dynamodb.put_item(TableName=table, Item={"id": {"S": "after"}})
        until(lambda: len(ingest) == 29, "what comes after")
    for letter in letters:
        assert said(letter)["__connect.errors.stage"] == "ingest"
        assert said(letter)["headwater.origin.sequence"].isdecimal()
        assert json.loads(letter.value() or b"")["dynamodb"]["Keys"]["id"]["S"] in {"k3", "k17"}


OWN = """
from pipeline.runtime.worker import Worker
from pipeline.settings.load import load

worker = Worker(load())
app = worker.app


def write(batch):
    for key, value in zip(batch.keys(), batch.values()):
        worker.produce(worker.topics.raw, key, value, batch.partition)


@worker.agent("copy", worker.topics.ingest)
async def copy(stream):
    await worker.process(stream, "copy", write)
"""


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_an_agent_of_ones_own_loses_the_record_that_is_refused_to_the_dead_letters_and_no_other(
    stack: Endpoints, tmp_path: Path, guarantee: str
) -> None:
    prefix = f"t{uuid.uuid4().hex[:8]}"
    conf = {"bootstrap.servers": stack.bootstrap_servers}
    ensure(admin(conf), [Topic(f"{prefix}.raw", 1, "small", SMALL)], 1)
    (tmp_path / "owning.py").write_text(OWN)
    settings = {"PYTHONPATH": str(tmp_path), "HEADWATER_PROCESSING_GUARANTEE": guarantee}
    fleet = Fleet(stack, tmp_path, settings, partitions=1, prefix=prefix, module="owning")
    producer = Producer(conf)
    for number in range(200):
        producer.produce(fleet.topics.ingest, large() if number in {0, 50, 51, 199} else f"{number}", b"k", 0)
    assert producer.flush(20) == 0
    with (
        Recorder(conf, fleet.topics.raw) as raw,
        Recorder(conf, fleet.topics.dead_letter) as letters,
        fleet.running() as workers,
    ):
        until(lambda: len({record.value() for record in raw}) == 196 and len(letters) >= 4, "all records")
        assert workers.all[0].alive(), log_of(workers.all[0])
    found = [int(record.value() or b"") for record in raw]
    assert sorted(set(found)) == [n for n in range(200) if n not in {0, 50, 51, 199}]
    if guarantee == "exactly_once":
        assert found == sorted(set(found)), "once each, in order"
        assert len(letters) == 4
