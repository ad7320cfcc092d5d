"""The promises of exactly once, one by one, on Apache Kafka. Number 10 is in `test_poison.py`."""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from faust.types import TP
from mypy_boto3_dynamodb import DynamoDBClient
from support.fleet import KILLER, Fleet, die_at, log_of
from support.waiting import until

from headwater.lab.killer import POINTS
from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import WorkerProcess
from pipeline.errors import FatalError
from pipeline.operate.status import status
from pipeline.runtime.worker import Worker as App
from pipeline.settings.root import Settings
from pipeline.state.buckets import Buckets
from pipeline.state.seen import SeenTable, pack, source_offset
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic
from pipeline.transport import Slice, transaction
from pipeline.transport.questions import Questions
from pipeline.transport.reader import is_member, member_id
from pipeline.transport.transaction import Transaction

pytestmark = pytest.mark.kafka


@pytest.fixture
def conf(stack: Endpoints) -> dict[str, Any]:
    return {"bootstrap.servers": stack.bootstrap_servers}


@pytest.fixture
def topic(conf: dict[str, Any]) -> str:
    """A topic of one partition."""
    name = f"t{uuid.uuid4().hex[:8]}"
    ensure(admin(conf), [Topic(name, 1, "any")], 1)
    return name


def change(number: int) -> bytes:
    return b'{"eventID":"e%d"}' % number


def write(conf: dict[str, Any], topic: str, values: list[bytes]) -> None:
    producer = Producer(conf)
    for value in values:
        producer.produce(topic, value, value)
    assert producer.flush(20) == 0


def started(conf: dict[str, Any], directory: Path, group: str) -> Transaction:
    found = Transaction(conf, directory, group)
    found.start()
    return found


# -- 1 and 2: a worker dies at each point of a slice ------------------------------------------------------------------


@dataclass
class Dead:
    """What a worker that died in a slice has left: committed offsets, state in RocksDB, records by partition."""

    committed: dict[int, int]
    in_rocksdb: dict[int, int]
    in_changelog: dict[int, int]
    raw: set[bytes]
    before_offsets: set[bytes]
    """The changes that the committed offsets stand for."""


@pytest.fixture(scope="module")
def dead(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Dead]]:
    fleet = Fleet(stack, tmp_path_factory.mktemp("dead"), partitions=2, module=KILLER)
    found: dict[str, Dead] = {}
    with (
        Recorder(fleet.conf, fleet.topics.raw) as raw,
        Recorder(fleet.conf, fleet.topics.ingest) as ingest,
        Recorder(fleet.conf, fleet.topics.seen) as seen,
        fleet.running(1) as workers,
    ):
        write(fleet.conf, fleet.topics.ingest, [change(n) for n in range(500)])
        until(lambda: len(raw) == 500, "the changes of a slice that is committed")
        for round_, point in enumerate(POINTS, 1):
            die_at(workers.all[0], point)
            write(fleet.conf, fleet.topics.ingest, [change(n) for n in range(500 * round_, 500 * (round_ + 1))])
            until(lambda: not workers.all[0].alive(), f"its end at {point}")
            found[point] = left_by(fleet, workers.all[0], raw, ingest, seen)
            workers.watch()
            until(lambda most=500 * (round_ + 1): len(raw) == most, "the changes, by the worker started again")  # type: ignore[misc]
    yield found


def left_by(fleet: Fleet, worker: WorkerProcess, raw: Recorder, ingest: Recorder, seen: Recorder) -> Dead:
    state = fleet.directory / f"{worker.name}.state"
    until(lambda: can_be_locked(state / "transactional-id"), "the end of its last thread")
    started(fleet.conf, state, fleet.prefix).close()  # ends what the worker left open, as its restart would
    consumer = Consumer({**fleet.conf, "group.id": fleet.prefix, "isolation.level": "read_committed"})
    tps = [TopicPartition(fleet.topics.ingest, p) for p in range(fleet.partitions)]
    committed = {tp.partition: tp.offset for tp in consumer.committed(tps, 30)}

    def reached(recorder: Recorder, topic: str) -> bool:
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(fleet.partitions)}
        return all(recorder.reached.get(p, 0) >= end for p, end in ends.items())

    for recorder, topic in ((raw, fleet.topics.raw), (ingest, fleet.topics.ingest), (seen, fleet.topics.seen)):
        until(lambda recorder=recorder, topic=topic: reached(recorder, topic), f"the end of {topic}")  # type: ignore[misc]
    consumer.close()
    stores = {p: Buckets(state / f"{fleet.topics.ingest}-{p}.db") for p in range(fleet.partitions)}
    in_rocksdb = {p: store.meta("upto") or -1 for p, store in stores.items()}
    for store in stores.values():
        store.close()
    return Dead(
        committed=committed,
        in_rocksdb=in_rocksdb,
        in_changelog={p: source_offset(records[-1]) for p, records in seen.records.items()},
        raw={record.value() or b"" for record in raw},
        before_offsets={
            record.value() or b""
            for p, records in ingest.records.items()
            for record in records
            if (record.offset() or 0) < committed[p]
        },
    )


def can_be_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


@pytest.mark.parametrize("point", POINTS)
def test_invariant_1_outputs_table_writes_and_offset_commit_together_or_not_at_all(
    dead: dict[str, Dead], point: str
) -> None:
    left = dead[point]
    assert left.raw == left.before_offsets, "the outputs are those of the offsets"
    assert left.in_changelog == left.committed, "the changelog ends where the offsets do"


@pytest.mark.parametrize("point", POINTS)
def test_invariant_2_rocksdb_is_never_ahead_of_kafka(dead: dict[str, Dead], point: str) -> None:
    left = dead[point]
    assert all(left.in_rocksdb[p] <= left.committed[p] for p in left.committed)
    assert dead["committed"].in_rocksdb != dead["committed"].committed, "it died between the commit and RocksDB"


# -- 3: see also test_group.py and tests/unit/transport/test_transport.py ------------------------------------------


def member(conf: dict[str, Any], topic: str, group: str, protocol: str) -> Consumer:
    """Return a member of the group that has partitions."""
    kip_848 = {"group.protocol": "consumer", "group.remote.assignor": "range"}
    consumer = Consumer({**conf, "group.id": group, **(kip_848 if protocol == "consumer" else {})})
    consumer.subscribe([topic])
    until(lambda: consumer.poll(0.1) is None and bool(consumer.assignment()), "partitions for a member")
    return consumer


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_invariant_3_a_worker_that_has_lost_its_partitions_cannot_commit(
    conf: dict[str, Any], topic: str, tmp_path: Path, protocol: str
) -> None:
    group = uuid.uuid4().hex
    first = member(conf, topic, group, protocol)
    old = first.consumer_group_metadata()
    assert reader_accepts(old)
    second = member_beside(first, conf, topic, group, protocol)
    now = first.consumer_group_metadata()
    assert now != old
    work = started(conf, tmp_path, group)

    def commits(membership: bytes | None) -> bool:
        work.produce(topic, b"k", b"v", 0)
        return work.commit(Slice(work.producer, (), {TP(topic, 0): 1}), membership)

    assert not commits(old), "an old generation"
    assert commits(now), "the membership as it is"
    first.close()
    second.close()
    assert not commits(now), "a member that has left"
    assert not commits(None), "no membership at all: the broker would accept it"
    work.close()


def reader_accepts(metadata: bytes) -> bool:
    return is_member(metadata) and member_id(metadata) != ""


def member_beside(first: Consumer, conf: dict[str, Any], topic: str, group: str, protocol: str) -> Consumer:
    """Return a second member, when the first one has a new generation for it."""
    before = first.consumer_group_metadata()
    kip_848 = {"group.protocol": "consumer", "group.remote.assignor": "range"}
    second = Consumer({**conf, "group.id": group, **(kip_848 if protocol == "consumer" else {})})
    second.subscribe([topic])
    until(
        lambda: (
            first.poll(0.05) is second.poll(0.05) is None
            and reader_accepts(second.consumer_group_metadata())
            and first.consumer_group_metadata() != before
        ),
        "a new generation",
    )
    return second


# -- 4 to 8 --------------------------------------------------------------------------------------------------------------


def test_invariant_4_a_new_owner_starts_at_the_stable_offset(conf: dict[str, Any], topic: str, tmp_path: Path) -> None:
    """The old owner has sent its offsets and not committed yet: who asks now is answered after the commit."""
    group = uuid.uuid4().hex
    work = started(conf, tmp_path, group)
    owner = Consumer({**conf, "group.id": group})
    producer = work.begin()
    producer.produce(topic, b"v")
    producer.send_offsets_to_transaction([TopicPartition(topic, 0, 7)], owner.consumer_group_metadata(), 30)
    owner.close()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: asyncio.run(Questions(conf, group).committed(TP(topic, 0))))
        with pytest.raises(TimeoutError):
            answer.result(1)
        producer.commit_transaction(30)
        assert answer.result(30) == 7
    work.close()


@dataclass
class Recovery:
    """The seen table of a group of its own, with what the test puts into Kafka."""

    conf: dict[str, Any]
    seen: SeenTable
    app: App
    group: str

    def commit(self, offset: int) -> None:
        consumer = Consumer({**self.conf, "group.id": self.group})
        consumer.commit(offsets=[TopicPartition(self.app.topics.ingest, 0, offset)], asynchronous=False)
        consumer.close()

    def changelog(self, *offsets: int) -> None:
        producer = Producer(self.conf)
        for offset in offsets:
            producer.produce(self.app.topics.seen, pack({1: [b"%16d" % offset]}), offset.to_bytes(8, "big"), 0)
        assert producer.flush(20) == 0

    def recover(self) -> int:
        part = self.seen._open_store(0)
        try:
            asyncio.run(self.seen._recover(Questions(self.conf, self.group), TP(self.app.topics.ingest, 0), part))
            return part.upto
        finally:
            part.store.close()


@pytest.fixture
def recovery(stack: Endpoints, conf: dict[str, Any], tmp_path: Path) -> Recovery:
    group = f"t{uuid.uuid4().hex[:8]}"
    kafka = {"bootstrap_servers": stack.bootstrap_servers}
    settings = Settings.model_validate(
        {"prefix": group, "partitions": 1, "state_dir": tmp_path / "state", "kafka": kafka, "web": {"enabled": False}}
    )
    app = App(settings)
    ensure(admin(conf), app.topics.all(), 1)
    seen = SeenTable(app.transport, app.topics.ingest, app.topics.seen, settings.state_dir, 3600)
    return Recovery(conf, seen, app, group)


def test_invariant_5_recovery_ends_at_the_committed_offset_and_checks_itself(recovery: Recovery) -> None:
    recovery.changelog(10, 20, 30)
    recovery.commit(20)
    assert recovery.recover() == 20, "no further than what is committed"
    recovery.commit(30)
    assert recovery.recover() == 30
    recovery.commit(40)
    with pytest.raises(FatalError, match="ends at source offset 30, committed is 40: event IDs are missing"):
        recovery.recover()
    recovery.commit(10)
    with pytest.raises(FatalError, match="is ahead of the group: it knows offset 30"):
        recovery.recover()


def test_invariant_5_a_changelog_that_retention_has_emptied_is_complete(recovery: Recovery) -> None:
    recovery.changelog(10, 20)
    recovery.commit(20)
    client = AdminClient(recovery.conf)
    for future in client.delete_records([TopicPartition(recovery.app.topics.seen, 0, 2)]).values():
        future.result(20)
    assert recovery.recover() == 20


def test_invariant_6_a_restart_aborts_what_its_predecessor_left_open(
    conf: dict[str, Any], topic: str, tmp_path: Path
) -> None:
    first = started(conf, tmp_path, "group")
    first.produce(topic, b"k", b"left open", 0)
    assert first.producer.flush(20) == 0
    with pytest.raises(FatalError, match="in use by another worker"):
        Transaction(conf, tmp_path, "group").start()
    first.close()  # gives the directory back, as a death does; the transaction stays open
    with Recorder(conf, topic) as records:
        begun = time.monotonic()
        second = started(conf, tmp_path, "group")
        second.produce(topic, b"k", b"new", 0)
        assert second.commit(Slice(second.producer), b"not asked for")
        until(lambda: len(records) == 1, "the new record")
        assert time.monotonic() - begun < transaction.TIMEOUT_MS / 1000, "readers did not wait for the time-out"
        assert [record.value() for record in records] == [b"new"]
    second.close()


def test_invariant_7_after_many_quick_aborts_the_next_slice_commits_whole(
    conf: dict[str, Any], topic: str, tmp_path: Path
) -> None:
    work = started(conf, tmp_path, "group")
    for number in range(30):
        work.produce_batch(topic, [{"key": b"k", "value": b"aborted %d" % number} for _ in range(500)], 0)
        work.spoil("the test wants it")
        assert not work.commit(Slice(work.producer), b"not asked for")
    values = [b"%d" % number for number in range(500)]
    work.produce_batch(topic, [{"key": b"k", "value": value} for value in values], 0)
    assert work.commit(Slice(work.producer), b"not asked for")
    with Recorder(conf, topic) as records:
        until(lambda: len(records) >= 500, "500 records")
        assert [record.value() for record in records] == values
    work.close()


def test_invariant_7_a_commit_of_unknown_outcome_ends_the_process(
    conf: dict[str, Any], topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit itself goes to the broker; only its answer is lost."""
    work = started(conf, tmp_path, "group")
    retry = work._retry

    def lose_the_answer(call: Any, *args: Any) -> None:
        retry(call, *args)
        if call.__name__ == "commit_transaction":
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def stop(reason: str, *, hint: str = "") -> None:
        raise SystemExit(reason)

    monkeypatch.setattr(work, "_retry", lose_the_answer)
    monkeypatch.setattr(transaction, "stop_process", stop)
    work.produce(topic, b"k", b"v", 0)
    with pytest.raises(SystemExit, match="with unknown outcome"):
        work.commit(Slice(work.producer), b"not asked for")
    work.close()


def test_invariant_8_what_was_aborted_is_read_by_nobody(stack: Endpoints, tmp_path: Path) -> None:
    fleet = Fleet(stack, tmp_path, partitions=1)
    writer = started(fleet.conf, tmp_path / "writer", "writer")
    with Recorder(fleet.conf, fleet.topics.raw) as raw, fleet.running(1):
        for number in range(6):
            writer.produce(fleet.topics.ingest, b"k", change(number), 0)
            if number % 2:
                writer.spoil("the test wants it")
            writer.commit(Slice(writer.producer), b"not asked for")
        until(lambda: len(raw) >= 3, "three changes")
        assert [record.value() for record in raw] == [change(0), change(2), change(4)]
    writer.close()


# -- 9 -------------------------------------------------------------------------------------------------------------------

FREEZING = '''
"""A worker that stands still at the end of a slice, between its positions and the commit, when it is asked to."""
import os, signal
from pathlib import Path
from pipeline.transport import Participant
from pipeline.worker import app

wish = Path(os.environ["HEADWATER_STATE_DIR"]).with_suffix(".freeze")


class Freezer(Participant):
    def finish(self, work):
        if wish.exists() and any(message.topic.startswith("@") for message in work.messages):
            wish.rename(wish.with_suffix(".frozen"))
            os.kill(os.getpid(), signal.SIGSTOP)


app.worker.transport.add_participant(Freezer())
'''


def test_invariant_9_a_zombie_of_ingest_commits_neither_changes_nor_positions(
    stack: Endpoints, dynamodb: DynamoDBClient, tmp_path: Path
) -> None:
    table = f"t{uuid.uuid4().hex[:8]}"
    dynamodb.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )

    def put(numbers: range) -> None:
        for number in numbers:
            dynamodb.put_item(TableName=table, Item={"id": {"S": f"k{number}"}, "n": {"N": str(number)}})

    (tmp_path / "freezing.py").write_text(FREEZING)
    settings = {
        "HEADWATER_AGENTS": '["ingest"]',
        "HEADWATER_SOURCES": json.dumps([{"tables": [table], "discovery_interval": 1}]),
        "PYTHONPATH": str(tmp_path),
    }
    fleet = Fleet(stack, tmp_path, settings, module="freezing")
    zombie_state = tmp_path / "worker-1"
    with Recorder(fleet.conf, fleet.topics.ingest) as ingest, fleet.running(1) as workers:
        zombie = workers.all[0]
        put(range(20))
        until(lambda: len(ingest) == 20, "20 changes")
        zombie_state.with_suffix(".freeze").touch()
        put(range(20, 40))
        until(lambda: zombie_state.with_suffix(".frozen").exists(), "a worker that stands still in its slice")
        workers.add()
        other = workers.all[1]
        until(lambda: re.search(r"Partitions: [1-9]", log_of(other)) is not None, "its partitions at the other worker")
        zombie.signal(signal.SIGCONT)
        until(lambda: "slice aborted" in log_of(zombie), "the refusal of its slice")
        put(range(40, 60))
        until(lambda: len(ingest) >= 60, "60 changes")
        numbers = sorted(int(json.loads(r.value() or b"")["dynamodb"]["NewImage"]["n"]["N"]) for r in ingest)
        assert numbers == list(range(60)), "each once"
    found = status(
        Settings.model_validate(
            {"prefix": fleet.prefix, "kafka": {"bootstrap_servers": stack.bootstrap_servers}, "partitions": 4}
        )
    )
    assert [shard.after for shard in found.shards] == [max_sequence(ingest)]


def max_sequence(ingest: Recorder) -> str:
    """Return the sequence number of the newest change."""
    numbers = [json.loads(record.value() or b"")["dynamodb"]["SequenceNumber"] for record in ingest]
    return str(max(cast("list[str]", numbers), key=int))
