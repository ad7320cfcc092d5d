"""Runs a replay: reads its range, runs the flows, writes what they make; one Kafka transaction every so often.

The transaction holds the messages, the offsets of the replay's own group and how far it is, under a transactional ID of its
own: so a replay that was killed goes on where it was, each message written once, and a second one of the same ID puts the
first out. Live workers are not touched: another group, and a pause whenever they fall behind.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from models.change import Change, event_id
from models.change import decode as decode_change
from models.dead_letter import DeadLetter, Headers
from pipeline.errors import FatalError, UsageError
from pipeline.flows.compile import CompileContext, FixedRows, compile_flow, schema_registry
from pipeline.limits import HEADROOM
from pipeline.replay.plan import Replay, ReplayProgress, State, encode, place
from pipeline.replay.source import ReplayBatch, ReplaySource
from pipeline.services.keys import mask_key
from pipeline.settings.enrich import PARTITIONED, TOPIC, JoinSettings
from pipeline.settings.flows import FlowSettings
from pipeline.settings.root import Settings
from pipeline.state.items import ITEMS, SCHEMAS, place_of, schema_of
from pipeline.state.reference import plain_item
from pipeline.steps.enrich import Lookup
from pipeline.steps.flow import Flow, Given, Result
from pipeline.steps.python import load
from pipeline.steps.route import REPLAY
from pipeline.steps.secrecy import seal_letter
from pipeline.topics.admin import admin, ensure, unreachable
from pipeline.topics.names import Topics
from pipeline.topics.read import read
from pipeline.transport import clients

log = logging.getLogger(__name__)
COMMIT_EVERY = 0.5
"""Seconds of work in one transaction."""
TIMEOUT = 30.0
PIECE = 500
"""Changes that go through the flows at once."""
STAGE = "replay"
GONE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}  # noqa: SLF001 - the documented name of the code
"""What a consumer says that is to read records that are not there."""
LOOK_EVERY = 5.0
"""Seconds between two looks at the lag of the live workers."""


@dataclass
class Run:
    """A replay under way."""

    settings: Settings
    replay: Replay
    flows: Mapping[str, tuple[FlowSettings, Flow]]
    source: ReplaySource
    on_progress: Callable[[Replay, Mapping[str, int], str], None] = lambda _replay, _positions, _note: None
    """Told after each transaction: the replay, how far each range is, and why it pauses, or ''."""
    stopping: Callable[[], bool] = lambda: False
    live_lag: Callable[[], int] = lambda: 0
    max_lag: int = 0
    """Records that the live workers may be behind while it goes on; 0: it does not look."""
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    positions: dict[str, int] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _topics_of: dict[tuple[str, str], str] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)
    """Event IDs, where such as come again are left out."""

    def go(self) -> Replay:
        """Do it; return the replay as it is then: done, or stopped. Raises HeadwaterError."""
        self._topics = Topics(self.settings)
        name = self.replay.group(self.settings.prefix)
        self._producer, self._group = transactional(self.settings, name), group_of(self.settings, name)
        with on_cluster():
            started, self._looked = self.clock(), 0.0
            read_before = self.replay.progress.read
            while not self.source.done and not self.stopping():
                self._wait_for_live()
                self._transaction()
                done = self.replay.progress.read - read_before
                if self.replay.rate and (ahead := done / self.replay.rate - (self.clock() - started)) > 0:
                    self.pause(min(ahead, 5.0))
            self._commit([], "done" if self.source.done else "stopped")
        return self.replay

    def _wait_for_live(self) -> None:
        while self.max_lag and self.clock() - self._looked > LOOK_EVERY and not self.stopping():
            lag = self.live_lag()
            if lag <= self.max_lag:
                self._looked = self.clock()
                return
            self.on_progress(self.replay, self.positions, f"waits for the live workers, {lag:,} records behind")
            self.pause(LOOK_EVERY / 2)

    def _transaction(self) -> None:
        """Read for a while, and commit what came of it."""
        deadline, lots, begun = self.clock() + COMMIT_EVERY, list[ReplayBatch](), False
        while self.clock() < deadline and not self.source.done:
            for lot in self.source.lots():
                if not begun:
                    self._producer.begin_transaction()
                    begun = True
                self._write(lot)
                lots.append(lot)
            self._producer.poll(0)
            if self.replay.rate and lots:
                break  # no burst beyond the rate
        if begun:
            self._commit(lots, "running", begun=True)

    def _commit(self, lots: Iterable[ReplayBatch], state: State, *, begun: bool = False) -> None:
        if not begun:
            self._producer.begin_transaction()
        for lot in lots:
            self.positions[place(lot.topic, lot.partition)] = lot.position
        positions = {} if self.replay.source == "raw" else dict(self.positions)
        self.replay = msgspec.structs.replace(self.replay, state=state, positions=positions)
        self._produce(self._topics.replays, self.replay.id.encode(), encode(self.replay), 0, [])
        offsets = [
            TopicPartition(lot.topic, lot.partition, lot.position) for lot in lots if self.replay.source == "raw"
        ]
        finish(self._producer, offsets, self._group)
        self.on_progress(self.replay, self.positions, "")

    def _write(self, lot: ReplayBatch) -> None:
        """Run the flows over records of a partition, and write what they make, in their order."""
        given, rejected = [], 0
        only = self.replay.key.encode()
        chosen = bool(self.replay.tables) or self.replay.dedup
        for record in lot.records:
            if only and record.key != only:
                continue
            try:
                change = decode_change(record.value)
            except ValueError as error:
                rejected += 1
                self._reject(lot, record.offset, record.key, record.value, error)
                continue
            if not chosen or self._wanted(change, record.value):
                given.append(Given(record.offset, record.key, record.value, change, record.at))
        sent = 0
        for begin in range(0, len(given), PIECE):
            for settings, flow in self.flows.values():
                results = flow.run(given[begin : begin + PIECE])
                sent += self._send(settings, lot.partition, results)
                for result in [one for one in results if one.error is not None]:
                    rejected, one = rejected + 1, result.given
                    self._reject(lot, one.offset, one.key, one.value, cast("Exception", result.error), settings)
        before = self.replay.progress
        progress = ReplayProgress(
            before.read + len(lot.records), before.taken + len(given), before.sent + sent, before.rejected + rejected
        )
        self.replay = msgspec.structs.replace(self.replay, progress=progress)

    def _send(self, flow: FlowSettings, partition: int, results: Iterable[Result]) -> int:
        """Write messages: an item stays in its partition; one whose key is masked goes where that belongs."""
        sent, write, topics, told = 0, self._producer.produce, self._topics_of, not self.replay.suffix
        for result in results:
            given_key = result.given.key
            for one in result.messages:
                topic = topics.get((flow.name, one.sink)) or self._topic(flow, one.sink)
                to = partition if one.key is given_key else -1
                headers = self._told(one.headers) if told else one.headers
                try:
                    write(topic, one.value, one.key, to, headers=cast("Any", headers))
                except BufferError:
                    self._produce(topic, one.key, one.value, to, headers)
                sent += 1
        return sent

    def _wanted(self, change: Change, value: bytes) -> bool:
        if self.replay.tables and change.table not in self.replay.tables:
            return False
        if self.replay.dedup:
            known = id_of(value)
            if known in self.seen:
                return False
            self.seen.add(known)
        return True

    def _told(self, headers: Headers) -> Headers:
        """Return headers that say, on a live topic, which replay a message comes from."""
        return headers if self.replay.suffix else [*headers, (REPLAY, self.replay.id.encode())]

    def _topic(self, flow: FlowSettings, sink: str) -> str:
        live = self._topics.sink(sink) if sink else self._topics.enriched(flow.through or "")
        topic = self.replay.topic(live)
        self._require(topic)
        self._topics_of[flow.name, sink] = topic
        return topic

    def _require(self, topic: str) -> None:
        if topic not in self._known:
            ensure(admin(self.settings.kafka.conf), [self._topics.late(topic)], self.settings.kafka.replication_factor)
            self._known.add(topic)

    def _reject(
        self,
        lot: ReplayBatch,
        offset: int,
        key: bytes | None,
        value: bytes,
        error: Exception,
        flow: FlowSettings | None = None,
    ) -> None:
        name = "" if flow is None else flow.name
        letter = DeadLetter(lot.topic.partition("+")[0], lot.partition, offset, STAGE, error, key, value, [], name)
        if flow is not None and flow.mask and flow.mask_key is not None:
            letter = seal_letter(_key(flow.mask_key), letter)
        topic = self.replay.topic(self._topics.dead_letter)
        self._require(topic)
        self._produce(topic, letter.key, letter.value, -1, self._told(letter.headers))

    def _produce(self, topic: str, key: bytes | None, value: bytes | None, partition: int, headers: Headers) -> None:
        produce(self._producer, topic, key, value, partition, headers)


def id_of(value: bytes) -> bytes:
    """Return the event ID of a record; b'' when it has none."""
    try:
        return event_id(value).encode()
    except ValueError:
        return b""


def produce(
    producer: Producer,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    partition: int,
    headers: Headers,
) -> None:
    """Write a record; waits while the queue is full."""
    while True:
        try:
            producer.produce(topic, value, key, partition, headers=headers)  # type: ignore[arg-type]
        except BufferError:
            producer.poll(0.05)
        else:
            return


def transactional(settings: Settings, name: str) -> Producer:
    """Return a producer of this transactional ID, which puts out whoever had it before."""
    producer = Producer(
        {
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "compression.type": "zstd",
            "message.max.bytes": settings.kafka.max_message_bytes + HEADROOM,
            "queue.buffering.max.messages": 1_000_000,
            **settings.kafka.conf,
            "transactional.id": name,
            "partitioner": "murmur2_random",
        },
        logger=log,
    )
    with on_cluster():
        producer.init_transactions(TIMEOUT)
    return producer


def measured(settings: Settings, replay: Replay, records: Iterable[tuple[bytes | None, bytes, float]]) -> float:
    """Return how many records a second the flows manage, of these; 0 when there are none. Nothing is written."""
    flows = [flow for _, flow in compiled(settings, replay.flows).values()]
    given = []
    for number, (key, value, at) in enumerate(records):
        try:
            given.append(Given(number, key, value, decode_change(value), at))
        except ValueError:
            continue
    started = time.perf_counter()
    for flow in flows:
        flow.run(given)
    # Reading, producing and the transaction take about 10 us a record beside the flows.
    return len(given) / (time.perf_counter() - started + len(given) * 10e-6) if given else 0.0


def group_of(settings: Settings, name: str) -> Any:
    """Return the metadata of a group that has no members: the transactional ID keeps others out."""
    consumer = reader(settings, name)
    try:
        return consumer.consumer_group_metadata()
    finally:
        consumer.close()


def finish(producer: Producer, offsets: list[TopicPartition], group: Any) -> None:
    """Commit the transaction, with offsets of the group."""
    if offsets:
        producer.send_offsets_to_transaction(offsets, group, TIMEOUT)
    producer.commit_transaction(TIMEOUT)


_key = cache(mask_key)


@contextmanager
def on_cluster() -> Iterator[None]:
    """Turn what Kafka raises into errors that say what to type next."""
    try:
        yield
    except KafkaException as error:
        if error.args[0].code() == KafkaError._FENCED:  # noqa: SLF001 - the documented name of the code
            raise FatalError("another process has taken this replay over", hint="headwater replay list") from error
        raise unreachable(error) from error


def compiled(settings: Settings, names: Iterable[str]) -> dict[str, tuple[FlowSettings, Flow]]:
    """Compile the flows of a replay, with the references as they are now."""
    wanted = list(names)
    known = {flow.name: flow for flow in settings.flows}
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"there is no flow {unknown[0]!r}", hint=f"one of {', '.join(known)}; headwater flows graph")
    chosen = [without_waiting(flow) for name, flow in known.items() if not wanted or name in wanted]
    references = {table: references_of(settings, table) for flow in chosen for table in flow.references}
    partitioned = {table for flow in chosen for table in flow.partitioned}
    state = items_of_flow_state(settings) if partitioned else {}
    means = CompileContext(
        references={
            **{table: items.get for table, items in references.items()},
            **{f"{PARTITIONED}{table}": item_finder(state, table) for table in partitioned},
        },
        key_schema=lambda table: state.get(schema_of(table), b"").decode(),
        rows={table: FixedRows(items) for table, items in references.items()},
        functions=load(settings.modules),
        topic=Topics(settings).sink,
        registry=schema_registry(settings),
    )
    return {flow.name: (flow, compile_flow(flow, means)) for flow in chosen}


def without_waiting(flow: FlowSettings) -> FlowSettings:
    """Return a flow whose joins do not wait: the references of a replay are all there, or never come."""
    enrich = tuple(
        step.model_copy(update={"hold": 0.0}) if isinstance(step, JoinSettings) else step for step in flow.enrich
    )
    return flow.model_copy(update={"enrich": enrich})


def references_of(settings: Settings, table: str) -> dict[bytes, bytes]:
    """Return the items of a reference table, as they are now."""
    topics, items = Topics(settings), dict[bytes, bytes]()
    is_topic = table.startswith(TOPIC)
    topic = table.removeprefix(TOPIC) if is_topic else topics.reference(table)
    for record in all_of(settings, topic):
        item = plain_item(record) if is_topic else record.value()
        if item:
            items[record.key() or b""] = item
        else:
            items.pop(record.key() or b"", None)
    return items


def items_of_flow_state(settings: Settings) -> dict[bytes, bytes]:
    """Return the items of all partitioned reference tables, as they are now, by their places in the flow state."""
    found = ((record.key() or b"", record.value()) for record in all_of(settings, Topics(settings).flow_state))
    latest = {key: value for key, value in found if key.startswith((ITEMS, SCHEMAS))}
    return {key: value for key, value in latest.items() if value is not None}


def item_finder(state: Mapping[bytes, bytes], table: str) -> Lookup:
    """Return what finds an item of a partitioned table by its key."""
    return lambda key: state.get(place_of(table, key))


def all_of(settings: Settings, topic: str) -> list[Message]:
    """Return all records of a topic; none when it is not there."""
    consumer = reader(settings, f"{settings.prefix}.replay")
    try:
        with on_cluster():
            partitions = consumer.list_topics(timeout=TIMEOUT).topics
            if topic not in partitions:
                return []
            return read(consumer, topic, dict.fromkeys(partitions[topic].partitions, OFFSET_BEGINNING), None)
    finally:
        consumer.close()


def reader(settings: Settings, group: str) -> Consumer:
    """Return a consumer of committed records that is told where to read: an offset that is gone is an error."""
    return clients.consumer(settings.kafka.conf, group, enable_partition_eof=True)


def is_end(message: Message, topic: str) -> bool:
    """Say whether a message is the end of a partition; raise FatalError when it is an error."""
    if (error := message.error()) is None:
        return False
    if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the documented name of the code
        return True
    if error.code() in GONE:
        raise FatalError(f"{topic}[{message.partition()}]: records were deleted meanwhile: {error.str()}")
    raise unreachable(KafkaException(error))
