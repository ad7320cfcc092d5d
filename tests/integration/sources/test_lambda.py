"""The Lambda handler on a real broker, with events as Lambda gives them."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Producer
from support.paths import EVENTS
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints, Stack
from headwater.lab.workers import Workers
from pipeline.errors import TransientError
from pipeline.settings.root import Settings
from pipeline.sources import lambda_handler
from pipeline.sources.dynamodb.records import cut_answer
from pipeline.sources.lambda_handler import INVOCATION_MARGIN_S, IngestWriter
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic, Topics

pytestmark = pytest.mark.kafka
DYNAMODB: dict[str, Any] = json.loads((EVENTS / "lambda-dynamodb.json").read_text())
KINESIS: dict[str, Any] = json.loads((EVENTS / "lambda-kinesis.json").read_text())
FINE: dict[str, Any] = {"batchItemFailures": []}


@dataclass
class Context:
    """What Lambda says of the time that is left."""

    seconds: float = 60.0

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


@dataclass
class Place:
    """Topics of its own, and a writer."""

    settings: Settings
    conf: dict[str, Any]
    writer: IngestWriter = field(init=False)

    def __post_init__(self) -> None:
        self.writer = IngestWriter(self.settings)

    @property
    def topics(self) -> Topics:
        return Topics(self.settings)


@pytest.fixture
def place(stack: Endpoints) -> Place:
    return placed(stack)


def placed(stack: Endpoints, prefix: str = "") -> Place:
    conf = {"bootstrap.servers": stack.bootstrap_servers}
    settings = Settings.model_validate(
        {
            "prefix": prefix or f"t{uuid.uuid4().hex[:8]}",
            "partitions": 1,
            "kafka": {"bootstrap_servers": stack.bootstrap_servers, "replication_factor": 1},
        }
    )
    ensure(admin(conf), Topics(settings).all(), 1)
    return Place(settings, conf)


def values(recorder: Recorder) -> list[Any]:
    return [json.loads(record.value() or b"") for record in recorder]


def test_a_batch_of_a_table_is_what_a_reader_would_have_written(place: Place) -> None:
    with Recorder(place.conf, place.topics.ingest) as found:
        assert place.writer.handle(DYNAMODB, Context()) == FINE
        until(lambda: len(found) >= 2, "the changes")
        arn = DYNAMODB["Records"][0]["eventSourceARN"]
        api = copy.deepcopy(DYNAMODB["Records"])
        for record in api:
            del record["eventSourceARN"]
            if identity := record.get("userIdentity"):
                record["userIdentity"] = {"PrincipalId": identity["principalId"], "Type": identity["type"]}
        read = cut_answer(json.dumps({"Records": api}).encode(), arn).records
        assert values(found) == [json.loads(record["value"]) for record in read]
        assert [record.key() for record in found] == [record["key"] for record in read]
        assert not any(record.headers() for record in found)


def test_a_record_that_is_not_a_change_is_a_dead_letter_and_the_others_continue(place: Place) -> None:
    poisoned = copy.deepcopy(DYNAMODB)
    del poisoned["Records"][0]["dynamodb"]["Keys"]
    with Recorder(place.conf, place.topics.ingest) as found, Recorder(place.conf, place.topics.dead_letter) as dead:
        assert place.writer.handle(KINESIS, Context()) == FINE
        assert place.writer.handle(poisoned, Context()) == FINE
        until(lambda: len(found) >= 3 and len(dead) >= 2, "the changes, and the letters")
        data = (EVENTS / "kinesis-dynamodb-modify.json").read_bytes().strip()
        assert [record.value() for record in found][:2] == [data, data]
        letter, other = list(dead)
        assert letter.value() == b"no change"
        assert json.loads(other.value() or b"") == poisoned["Records"][0]
        arn = KINESIS["Records"][0]["eventSourceARN"]
        assert ("__connect.errors.topic", f"{arn}/shardId-000000000006".encode()) in (letter.headers() or [])


def test_malformed_members_of_an_event_are_dead_letters_and_the_others_continue(place: Place) -> None:
    event = copy.deepcopy(KINESIS)
    consumed = {**copy.deepcopy(event["Records"][0])}
    consumed["eventSourceARN"] += "/consumer/app:1540591608"
    no_base64 = copy.deepcopy(event["Records"][0])
    no_base64["kinesis"]["data"] = "?"
    malformed = [{}, {"eventSource": "aws:sqs"}, None, "text", {"eventSource": "aws:kinesis"}, no_base64]
    event["Records"] = [malformed[0], consumed, *malformed[1:]]
    with Recorder(place.conf, place.topics.ingest) as found, Recorder(place.conf, place.topics.dead_letter) as dead:
        assert place.writer.handle(event, Context()) == FINE
        until(lambda: len(found) >= 1 and len(dead) >= len(malformed), "the change, and the letters")
        assert [json.loads(record.value() or b"") for record in dead] == malformed
        headers = [dict(cast("list[tuple[str, bytes]]", record.headers() or [])) for record in dead]
        assert {header["headwater.origin.form"] for header in headers} == {b"lambda"}
        assert headers[-1]["headwater.origin.sequence"] == no_base64["kinesis"]["sequenceNumber"].encode()


def test_a_batch_that_runs_out_of_time_is_aborted_and_comes_again_from_its_first_record(place: Place) -> None:
    first = {"batchItemFailures": [{"itemIdentifier": DYNAMODB["Records"][0]["dynamodb"]["SequenceNumber"]}]}
    many = {"Records": DYNAMODB["Records"] * 20_000}
    with Recorder(place.conf, place.topics.ingest) as found:
        assert place.writer.handle(DYNAMODB, Context()) == FINE
        assert place.writer.handle(many, Context(INVOCATION_MARGIN_S + 0.3)) == first
        assert place.writer.handle(DYNAMODB, Context(INVOCATION_MARGIN_S)) == first
        assert place.writer.handle(DYNAMODB, Context()) == FINE
        until(lambda: len(found) >= 4, "the two batches that were through")
        assert len(found) == 4, "nothing of those that were not"


def test_a_broker_that_is_away_or_refuses_is_an_error_and_no_silence(place: Place) -> None:
    elsewhere = place.settings.model_copy(
        update={"kafka": place.settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})}
    )
    away = IngestWriter(elsewhere).handle(DYNAMODB, Context(INVOCATION_MARGIN_S + 1))
    assert away["batchItemFailures"], "the time is out: Lambda repeats the batch"
    nowhere = place.settings.model_copy(update={"prefix": f"{place.settings.prefix}-none"})
    with pytest.raises(TransientError, match="was not written"):
        IngestWriter(nowhere).handle(DYNAMODB, Context())


def test_what_comes_twice_and_by_both_ways_is_one_change_on_raw(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "HEADWATER_PREFIX": place.settings.prefix,
        "HEADWATER_PARTITIONS": "1",
        "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": place.settings.kafka.bootstrap_servers,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lambda_handler, "_writers", [])
    workers = Workers(1, tmp_path, {**environment, "HEADWATER_AGENTS": '["deduplicate"]'})
    with Recorder(place.conf, place.topics.raw) as raw, Recorder(place.conf, place.topics.ingest) as ingest:
        workers.start()
        try:
            for event in (DYNAMODB, DYNAMODB, KINESIS, KINESIS):  # Lambda repeats what it is not sure of
                assert lambda_handler.handler(event, Context()) == FINE
            until(lambda: len(ingest) >= 8 and len(raw) >= 3, "the changes")
            assert len(lambda_handler._writers) == 1, "made once and kept"
            last = copy.deepcopy(DYNAMODB["Records"][:1])
            last[0]["eventID"] = "the last one"
            lambda_handler.handler({"Records": last}, Context())
            until(lambda: len(raw) >= 4, "the last change")
            ids = [value["eventID"] for value in values(raw)]
        finally:
            workers.stop()
    wanted = [record["eventID"] for record in DYNAMODB["Records"]]
    assert ids == [*wanted, "c4e3b2a1-7d1f-4a54-9d0c-0d2f3f0c9a11", "the last one"]
    assert {record.key() for record in raw} == {b'{"line":{"N":"3"},"order_id":{"S":"o-1"}}'}


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[tuple[Stack, Place]]:
    """A broker of its own, which a test may hurt."""
    with Stack(tmp_path / "stack", broker="kafka", progress=print) as stack:
        assert stack.endpoints is not None
        yield stack, placed(stack.endpoints)


class Struck(IngestWriter):
    """Strikes once, when so many records of a batch are on the broker and the transaction is open."""

    def __init__(self, settings: Settings, after: int, strike: Callable[[], None]) -> None:
        super().__init__(settings)
        self._left, self._strike = after, strike

    def _produce(self, producer: Producer, *rest: Any) -> None:
        super()._produce(producer, *rest)
        self._left -= 1
        if self._left == 0:
            assert producer.flush(30) == 0
            self._strike()


def batch(count: int) -> dict[str, Any]:
    """A batch of changes of one item."""
    records = []
    for number in range(count):
        record = copy.deepcopy(DYNAMODB["Records"][0])
        record["eventID"] = f"e{number}"
        record["dynamodb"]["SequenceNumber"] = f"{10**20 + number}"
        records.append(record)
    return {"Records": records}


def ids(recorder: Recorder) -> list[str]:
    return [value["eventID"] for value in values(recorder)]


def test_a_broker_that_is_killed_in_the_middle_of_a_batch_fails_it_and_the_retry_is_exact(
    mortal: tuple[Stack, Place],
) -> None:
    stack, place = mortal
    event = batch(500)
    writer = Struck(place.settings, 250, stack.kill_broker)
    with Recorder(place.conf, place.topics.ingest) as ingest:
        assert writer.handle(batch(1), Context()) == FINE
        until(lambda: len(ingest) == 1, "a batch that was through")
        assert writer.handle(event, Context(INVOCATION_MARGIN_S + 8)) == {
            "batchItemFailures": [{"itemIdentifier": event["Records"][0]["dynamodb"]["SequenceNumber"]}]
        }
        stack.start_broker()
        assert writer.handle(event, Context()) == FINE
        until(lambda: len(ingest) >= 501, "the batch")
        assert writer.handle(batch(1), Context()) == FINE
        until(lambda: ids(ingest)[-1:] == ["e0"] and len(ingest) >= 502, "a batch after it")
        assert ids(ingest) == ["e0", *(f"e{number}" for number in range(500)), "e0"], "nothing of the first attempt"
        assert ingest.ends[0] >= 752, "which is on the broker, and was aborted"


def test_a_batch_whose_commit_has_no_answer_is_failed_and_what_comes_twice_is_dropped(
    mortal: tuple[Stack, Place], tmp_path: Path
) -> None:
    stack, place = mortal
    broker, event = stack.processes[0].pid, batch(500)
    writer = Struck(place.settings, 500, lambda: os.kill(broker, signal.SIGSTOP))
    environment = {
        "HEADWATER_PREFIX": place.settings.prefix,
        "HEADWATER_PARTITIONS": "1",
        "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": place.settings.kafka.bootstrap_servers,
        "HEADWATER_AGENTS": '["deduplicate"]',
    }
    with Recorder(place.conf, place.topics.ingest) as ingest, Recorder(place.conf, place.topics.raw) as raw:
        try:
            failed = writer.handle(event, Context(INVOCATION_MARGIN_S + 4))
        finally:
            os.kill(broker, signal.SIGCONT)
        assert failed["batchItemFailures"], "the commit was under way: nobody knows what has become of it"
        assert writer.handle(event, Context()) == FINE
        last = copy.deepcopy(batch(1))
        last["Records"][0]["eventID"] = "the last one"
        assert writer.handle(last, Context()) == FINE
        until(lambda: "the last one" in ids(ingest), "all batches")
        assert len(ingest) in {501, 1_001}, "whole batches, once or twice"
        workers = Workers(1, tmp_path, environment)
        workers.start()
        try:
            until(lambda: "the last one" in ids(raw), "the last change")
        finally:
            workers.stop()
        assert ids(raw) == [*(f"e{number}" for number in range(500)), "the last one"]


def test_a_cold_start_takes_less_than_a_second_without_the_broker() -> None:
    code = (
        "import time; began = time.process_time()\n"
        "import pipeline.sources.lambda_handler, sys\n"
        "print(time.process_time() - began)\n"
        "assert not {'faust', 'boto3', 'botocore', 'rocksdict'} & set(sys.modules)\n"
    )
    took = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took.append(float(done.stdout))
    assert min(took) < 1.0, took


def test_a_record_that_the_ingest_topic_refuses_is_a_dead_letter_and_its_batch_continues(stack: Endpoints) -> None:
    prefix = f"t{uuid.uuid4().hex[:8]}"
    small = Topic(f"{prefix}.ingest", 1, "small", {"max.message.bytes": "20000"})
    ensure(admin({"bootstrap.servers": stack.bootstrap_servers}), [small], 1)
    place, event = placed(stack, prefix), batch(20)
    large = event["Records"][7]
    large["dynamodb"]["NewImage"] = {"text": {"S": os.urandom(40_000).hex()}}
    with Recorder(place.conf, place.topics.ingest) as ingest, Recorder(place.conf, place.topics.dead_letter) as letters:
        for _ in range(2):  # the second batch is written as usual
            assert place.writer.handle(event, Context()) == FINE
        until(lambda: (len(ingest), len(letters)) == (38, 2), "all but the one that is too large")
    assert {json.loads(letter.value() or b"")["eventID"] for letter in letters} == {large["eventID"]}
