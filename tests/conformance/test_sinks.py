"""Every sink keeps the contract of pipeline/sinks/base.py: each record once, whatever fails, whoever dies, however slow it is.

The mirror writes to a real Kafka cluster. Pub/Sub is a server that speaks its protocol; it has no transactions, so it is
held to at least once, in order of each item.
"""

from __future__ import annotations

import io
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow.parquet as pq
import pytest
from confluent_kafka import OFFSET_BEGINNING, Message
from faust.types import TP
from support.dynamodb_in_memory import FakeDynamoDB, refused
from support.pubsub_server import Server, serve
from support.sink_worker import LOG, OTHER_LOG, PARTITION, Clock, Killed, Killer, Owner

from headwater.lab.stack import Endpoints
from pipeline.errors import TransientError
from pipeline.runtime.entry_points import known_agents
from pipeline.settings.sinks import MirrorSettings, PubSubSettings, ReplicaSettings
from pipeline.sinks.base import NOTHING, Sink, Writer
from pipeline.sinks.lake.iceberg.sink import IcebergSink
from pipeline.sinks.lake.layouts.columns import ColumnsLayout, TableSchema
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.sink import LakeSink, Rotation
from pipeline.sinks.mirror.sink import Mirror, MirrorWriter
from pipeline.sinks.pubsub import PubSub, PubSubWriter
from pipeline.sinks.replica.sink import Replica
from pipeline.sinks.replica.table import ReplicaTable
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic
from pipeline.topics.read import read_topic
from pipeline.transport import clients
from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log

ROTATION = Rotation(4, 1 << 20, 5, 0)


def record(offset: int, key: str, op: str, name: str = "e", later: int = 0) -> Message:
    body: dict[str, Any] = {
        "Keys": {"id": {"S": key}},
        "SequenceNumber": str(offset + later + 1),
        "ApproximateCreationDateTime": 1_764_000_000 + 12 * 3600 * (offset + later),  # of many dates
    }
    if op != "REMOVE":
        body["NewImage"] = {"id": {"S": key}, "n": {"N": str(offset)}}
    change = {"eventID": f"{name}{offset}", "eventName": op, "tableName": "t", "dynamodb": body}
    item_key = json.dumps({"id": {"S": key}}).encode()
    return Message(*PARTITION, offset=offset, key=item_key, value=json.dumps(change).encode(), timestamp=(1, offset))


OPS = ["INSERT", "MODIFY", "MODIFY", "REMOVE"]
# Offset 5 is the end of a transaction.
TOPIC = {n: record(n, f"k{n % 3}", OPS[n // 3 % 4]) for n in range(18) if n != 5}
CHANGES = {f"e{n}" for n in TOPIC}
RECREATED = {n: record(n, f"k{n % 3}", OPS[n // 3 % 4], "again", later=18) for n in range(15)}
"""What is on the topic when it was recreated: later changes, at offsets that were there before."""


def items(topic: Mapping[int, Message] = TOPIC) -> dict[str, int]:
    """The items that all changes make."""
    found: dict[str, int] = {}
    for one in topic.values():
        body = json.loads(one.value() or b"")["dynamodb"]
        key = body["Keys"]["id"]["S"]
        found.pop(key, None)
        if "NewImage" in body:
            found[key] = int(body["NewImage"]["n"]["N"])
    return found


BOTH = sorted([*CHANGES, *(f"again{n}" for n in RECREATED)])


@dataclass
class Destination:
    """A sink, what it has, and where its calls can be made to fail."""

    make: Callable[[Clock], Sink]
    content: Callable[[], Any]
    expected: Any
    recreated: Any
    """What is expected when the topic is recreated and carried again."""
    killer: Killer
    trouble: BaseException
    """What it raises when it may answer later."""


def lake(directory: Path, layout: str) -> Destination:
    killer, objects = Killer(), Objects(f"file://{directory}")
    troubled = cast("Any", Troubled(objects, killer))
    schemas: dict[str, TableSchema] = {}

    def grow(table: str, schema: TableSchema) -> TableSchema:
        schemas[table] = schemas.get(table, TableSchema()).merge(schema)
        return schemas[table]

    made = EnvelopeLayout() if layout == "envelope" else ColumnsLayout(lambda t: schemas.get(t, TableSchema()), grow)

    def make(clock: Clock) -> Sink:
        path = "table={table}/date={date}"
        return LakeSink(troubled, made, {"s": PARTITION.topic}, ROTATION, path=path, clock=clock)

    def content() -> list[str]:
        files = [pq.read_table(io.BytesIO(objects.read(p))) for p in objects.paths() if p.endswith(".parquet")]
        return sorted(event for file in files for event in file.column(f"{made.prefix}event_id").to_pylist())

    return Destination(make, content, sorted(CHANGES), BOTH, killer, TransientError("slow down"))


class Troubled:
    """An object store whose calls can be made to fail."""

    def __init__(self, objects: Objects, killer: Killer) -> None:
        for name in ("create", "change", "read", "exists"):
            setattr(self, name, killer.wrap(getattr(objects, name)))


def iceberg(directory: Path, mode: Literal["append", "upsert"]) -> Destination:
    killer = Killer()
    catalog = {"type": "sql", "uri": f"sqlite:///{directory}/catalog.db", "warehouse": f"file://{directory}"}
    made: list[IcebergSink] = []

    def make(clock: Clock) -> Sink:
        sink = IcebergSink(catalog, "n", ROTATION, layout="columns", mode=mode, clock=clock)
        sink._commit = killer.wrap(sink._commit)  # type: ignore[method-assign]
        made.append(sink)
        return sink

    def content() -> Any:
        rows = made[-1].catalog.load_table(("n", "t")).scan().to_arrow().to_pylist()
        if mode == "append":
            return sorted(row["_event_id"] for row in rows)
        found = {row["id"]: int(row["n"]) for row in rows}
        assert len(found) == len(rows)
        return found

    if mode == "append":
        return Destination(make, content, sorted(CHANGES), BOTH, killer, TransientError("slow down"))
    return Destination(make, content, items(), items(RECREATED), killer, TransientError("slow down"))


def replica(version: Literal["attribute", "table"]) -> Destination:
    killer = Killer()

    def trouble(when: str) -> None:
        here = killer.at == 0 and killer.after == (when == "after")
        if when == "after":
            killer.at -= 1
        if here:
            raise killer.error

    client = FakeDynamoDB({"t": "id", "t.versions": "item"}, trouble)
    settings = ReplicaSettings(sinks=("s",), version=version, threads=1)

    def make(_clock: Clock) -> Sink:
        sink = Replica(settings, ReplicaTable(cast("Any", client), settings))
        sink._calls = ThreadPoolExecutor(1)
        return sink

    def content() -> dict[str, int]:
        return {item["id"]["S"]: int(item["n"]["N"]) for item in client.tables["t"].values()}

    return Destination(make, content, items(), items(RECREATED), killer, refused("InternalServerError"))


def pubsub(server: Server) -> Destination:
    killer = Killer()

    class Publisher(PubSub):
        """One whose publishing can be made to fail."""

        def open(self, tp: TP, start: int, log: Log = UNKNOWN, committed: Committed = NOTHING) -> PubSubWriter:
            writer = super().open(tp, start, log, committed)
            writer._publish = killer.wrap(writer._publish)  # type: ignore[method-assign]
            return writer

    def make(_clock: Clock) -> Sink:
        return Publisher(PubSubSettings(project="p"), {"s": PARTITION.topic})

    def content() -> list[str]:
        events = [json.loads(message.data) for message in server.published]
        firsts = list({event["eventID"]: event for event in events}.values())
        keys = {json.dumps(event["dynamodb"]["Keys"]) for event in firsts}
        for key in keys:
            mine = [int(e["dynamodb"]["SequenceNumber"]) for e in firsts if json.dumps(e["dynamodb"]["Keys"]) == key]
            assert mine == sorted(mine), "an item's changes are out of order"
        return sorted(event["eventID"] for event in firsts)

    return Destination(make, content, sorted(CHANGES), BOTH, killer, TransientError("unavailable"))


def mirror(stack: Endpoints) -> Destination:
    killer, name = Killer(), f"mirrored-{uuid.uuid4().hex[:8]}"
    conf = {"bootstrap.servers": stack.bootstrap_servers}
    topic = Topic(name, 1, "copy", {})
    ensure(admin(conf), [topic], 1)
    settings = MirrorSettings(name="m", bootstrap_servers=stack.bootstrap_servers)

    class Copying(Mirror):
        """One whose transactions can be made to fail; what the group has here is what the worker of the test says."""

        known: int | None = None

        def open(self, tp: TP, start: int, log: Log = UNKNOWN, committed: Committed = NOTHING) -> Writer:
            self.known = committed.offset
            writer = super().open(tp, start, log, committed)
            assert isinstance(writer, MirrorWriter)
            writer._write = killer.wrap(writer._write)  # type: ignore[method-assign]
            return writer

        def _known_here(self, tp: TP) -> tuple[int | None, int]:
            return self.known, sys.maxsize

    def make(_clock: Clock) -> Sink:
        return Copying(settings, conf, name, {PARTITION.topic: topic})

    def content() -> list[str]:
        consumer = clients.consumer(conf, name, enable_partition_eof=True)
        try:
            found = read_topic(consumer, name, {0: OFFSET_BEGINNING}, None)
        finally:
            consumer.close()
        return sorted(json.loads(one.value() or b"")["eventID"] for one in found)

    return Destination(make, content, sorted(CHANGES), BOTH, killer, TransientError("slow down"))


SINKS: dict[str, Callable[[Path], Destination]] = {
    "lake, envelope": lambda directory: lake(directory, "envelope"),
    "lake, columns": lambda directory: lake(directory, "columns"),
    "iceberg, append": lambda directory: iceberg(directory, "append"),
    "iceberg, upsert": lambda directory: iceberg(directory, "upsert"),
    "replica, attribute": lambda _directory: replica("attribute"),
    "replica, table": lambda _directory: replica("table"),
}


@pytest.fixture(params=[*SINKS, "pubsub", pytest.param("mirror", marks=pytest.mark.kafka)])
def destination(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Destination]:
    with ExitStack() as serving:
        if request.param == "pubsub":
            server, address = serving.enter_context(serve())
            monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
            yield pubsub(server)
        elif request.param == "mirror":
            yield mirror(request.getfixturevalue("kafka_stack"))
        else:
            yield SINKS[request.param](tmp_path)


def test_every_destination_of_the_settings_is_held_to_the_contract() -> None:
    kinds = {"lake", "iceberg", "mirror", "pubsub", "replica"}
    assert {name.partition(",")[0] for name in (*SINKS, "pubsub", "mirror")} == kinds
    assert {agent for agent in known_agents() if agent in kinds} == kinds - {"iceberg"}


def carry(owner: Owner, committed: int = 0, slices: int = 14) -> int:
    """Carry all that is left; return the committed offset."""
    for _ in range(slices):
        committed = owner.slice(4) or committed
        owner.work()
        owner.clock.now += 100
    return committed


def is_right(destination: Destination) -> bool:
    found: bool = destination.content() == destination.expected
    return found


def is_held(owner: Owner) -> bool:
    return owner.held


def test_each_record_arrives_once(destination: Destination) -> None:
    owner = Owner(destination.make, TOPIC, 0)
    assert carry(owner) == 18
    assert is_right(destination)
    assert not owner.rejected
    assert not owner.fatal


@pytest.mark.parametrize("after", [False, True])
def test_a_restart_in_the_middle_loses_and_doubles_nothing(destination: Destination, after: bool) -> None:
    owner, committed = Owner(destination.make, TOPIC, 0), 0
    for call in (0, 1, 2, 3, 0):
        destination.killer.plan(call, after=after)
        try:
            for _ in range(4):
                committed = owner.slice(4) or committed
                owner.work()
                owner.clock.now += 100
        except Killed:
            owner = Owner(destination.make, TOPIC, committed)
    destination.killer.plan(-1, after=False)
    carry(owner, committed)
    assert is_right(destination)


@pytest.mark.parametrize("after", [False, True])
def test_a_flush_that_fails_is_tried_again_and_the_reason_is_seen(destination: Destination, after: bool) -> None:
    owner, committed = Owner(destination.make, TOPIC, 0), 0
    for call in (0, 1, 2, 0, 1):
        destination.killer.plan(call, after=after, error=destination.trouble)
        for _ in range(3):
            committed = owner.slice(4) or committed
            owner.work()
            owner.clock.now += 100
    destination.killer.plan(-1, after=False)
    assert carry(owner, committed) == 18
    assert is_right(destination)
    assert not owner.fatal
    said = [state for state in owner.states if state is not None]
    assert said, "why it does not go on"
    assert owner.states[-1] is None, "that it goes on again"


def test_records_that_are_delivered_again_change_nothing(destination: Destination) -> None:
    first = Owner(destination.make, TOPIC, 0)
    first.slice(6, refused=True)  # the slice is aborted: its records come again
    carry(first)
    assert is_right(destination)
    carry(Owner(destination.make, TOPIC, 0))  # whose offsets were lost
    assert is_right(destination)


def test_a_destination_that_does_not_answer_holds_its_partition_and_nothing_else(destination: Destination) -> None:
    def small(clock: Clock) -> Sink:
        sink = destination.make(clock)
        sink.memory = 1_000
        return sink

    owner = Owner(small, TOPIC, 0)
    destination.killer.plan(0, after=False, error=destination.trouble)
    for _ in range(8):
        owner.slice(4)
        owner.work()
        owner.clock.now += 100
        if owner.held:
            break
        destination.killer.plan(0, after=False, error=destination.trouble)
    assert is_held(owner), "delivery goes on although nothing arrives"
    destination.killer.plan(-1, after=False)
    assert carry(owner) == 18
    assert not is_held(owner)
    assert is_right(destination)


def test_a_partition_that_went_to_another_worker_is_left_alone(destination: Destination) -> None:
    former = Owner(destination.make, TOPIC, 0)
    former.slice(6)
    former.runner.revoked(frozenset({PARTITION}))  # with a task under way
    assert former.slice(0) is None
    owner = Owner(destination.make, TOPIC, 0)
    assert carry(owner) == 18
    former.work()  # it ends its task, and nobody listens
    former.clock.now += 100
    former.slice(0)
    former.work()
    assert is_right(destination)


@pytest.mark.parametrize("committed", [Committed(None), Committed(18, LOG), Committed(18)])
def test_a_recreated_topic_is_carried_from_its_beginning(destination: Destination, committed: Committed) -> None:
    carry(Owner(destination.make, TOPIC, 0))
    owner = Owner(destination.make, RECREATED, 0, log=OTHER_LOG, committed=committed)
    assert carry(owner) == 15
    assert destination.content() == destination.recreated
    assert not owner.fatal


def test_a_restart_in_the_middle_of_a_recreated_topic_loses_and_doubles_nothing(destination: Destination) -> None:
    carry(Owner(destination.make, TOPIC, 0))
    owner, committed = Owner(destination.make, RECREATED, 0, log=OTHER_LOG, committed=Committed(18, LOG)), 0
    for call in (1, 0, 2):
        destination.killer.plan(call, after=True)
        try:
            for _ in range(3):
                committed = owner.slice(4) or committed
                owner.work()
                owner.clock.now += 100
        except Killed:
            known = Committed(committed, OTHER_LOG) if committed else Committed(18, LOG)
            owner = Owner(destination.make, RECREATED, committed, log=OTHER_LOG, committed=known)
    destination.killer.plan(-1, after=False)
    carry(owner)
    assert destination.content() == destination.recreated
