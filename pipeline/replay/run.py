"""Runs a replay: reads its range, runs the flows, writes what they make; one Kafka transaction every so often.

The transaction holds the messages, the offsets of the replay's own group and how far it is, under a transactional ID of its
own: so a replay that was killed continues where it was, each message written once, and a second one of the same ID evicts the
first. Live workers are not touched: another group, and a pause whenever they fall behind.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import msgspec
from confluent_kafka import TopicPartition

from models.change import Change, event_id
from models.change import decode as decode_change
from models.dead_letter import DeadLetter, Headers
from pipeline.replay.plan import Replay, ReplayProgress, State, encode, place
from pipeline.replay.source import ReplayBatch, ReplaySource
from pipeline.replay.transaction import finish, group_metadata, on_cluster, produce, transactional
from pipeline.services.keys import mask_key
from pipeline.settings.flows import FlowSettings
from pipeline.settings.root import Settings
from pipeline.steps.flow import Flow, Given, Result
from pipeline.steps.route import REPLAY
from pipeline.steps.secrecy import seal_letter
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics

log = logging.getLogger(__name__)
COMMIT_EVERY_S = 0.5
"""Seconds of work in one transaction."""
PIECE = 500
"""Changes that go through the flows at once."""
STAGE = "replay"
LOOK_EVERY_S = 5.0
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
    """Records that the live workers may be behind while it runs; 0: it does not look."""
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
        self._producer, self._group = transactional(self.settings, name), group_metadata(self.settings, name)
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
        while self.max_lag and self.clock() - self._looked > LOOK_EVERY_S and not self.stopping():
            lag = self.live_lag()
            if lag <= self.max_lag:
                self._looked = self.clock()
                return
            self.on_progress(self.replay, self.positions, f"waits for the live workers, {lag:,} records behind")
            self.pause(LOOK_EVERY_S / 2)

    def _transaction(self) -> None:
        """Read for a while, and commit what came of it."""
        deadline, batches, begun = self.clock() + COMMIT_EVERY_S, list[ReplayBatch](), False
        while self.clock() < deadline and not self.source.done:
            for batch in self.source.batches():
                if not begun:
                    self._producer.begin_transaction()
                    begun = True
                self._write(batch)
                batches.append(batch)
            self._producer.poll(0)
            if self.replay.rate and batches:
                break  # no burst beyond the rate
        if begun:
            self._commit(batches, "running", begun=True)

    def _commit(self, batches: Iterable[ReplayBatch], state: State, *, begun: bool = False) -> None:
        if not begun:
            self._producer.begin_transaction()
        for batch in batches:
            self.positions[place(batch.topic, batch.partition)] = batch.position
        positions = {} if self.replay.source == "raw" else dict(self.positions)
        self.replay = msgspec.structs.replace(self.replay, state=state, positions=positions)
        self._produce(self._topics.replays, self.replay.id.encode(), encode(self.replay), 0, [])
        offsets = [
            TopicPartition(batch.topic, batch.partition, batch.position)
            for batch in batches
            if self.replay.source == "raw"
        ]
        finish(self._producer, offsets, self._group)
        self.on_progress(self.replay, self.positions, "")

    def _write(self, batch: ReplayBatch) -> None:
        """Run the flows over records of a partition, and write what they make, in their order."""
        given, rejected = [], 0
        only = self.replay.key.encode()
        chosen = bool(self.replay.tables) or self.replay.dedup
        for record in batch.records:
            if only and record.key != only:
                continue
            try:
                change = decode_change(record.value)
            except ValueError as error:
                rejected += 1
                self._reject(batch, record.offset, record.key, record.value, error)
                continue
            if not chosen or self._wanted(change, record.value):
                given.append(Given(record.offset, record.key, record.value, change, record.at))
        sent = 0
        for begin in range(0, len(given), PIECE):
            for settings, flow in self.flows.values():
                results = flow.run(given[begin : begin + PIECE])
                sent += self._send(settings, batch.partition, results)
                for result in [one for one in results if one.error is not None]:
                    rejected, one = rejected + 1, result.given
                    self._reject(batch, one.offset, one.key, one.value, cast("Exception", result.error), settings)
        before = self.replay.progress
        progress = ReplayProgress(
            before.read + len(batch.records), before.taken + len(given), before.sent + sent, before.rejected + rejected
        )
        self.replay = msgspec.structs.replace(self.replay, progress=progress)

    def _send(self, flow: FlowSettings, partition: int, results: Iterable[Result]) -> int:
        """Write messages: an item stays in its partition; one whose key is masked goes where that belongs."""
        sent, write, topics, told = 0, self._producer.produce, self._topics_of, not self.replay.suffix
        for result in results:
            given_key = result.given.key
            for message in result.messages:
                topic = topics.get((flow.name, message.sink)) or self._topic(flow, message.sink)
                to = partition if message.key is given_key else -1
                headers = self._told(message.headers) if told else message.headers
                try:
                    write(topic, message.value, message.key, to, headers=cast("Any", headers))
                except BufferError:
                    self._produce(topic, message.key, message.value, to, headers)
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
        batch: ReplayBatch,
        offset: int,
        key: bytes | None,
        value: bytes,
        error: Exception,
        flow: FlowSettings | None = None,
    ) -> None:
        name = "" if flow is None else flow.name
        letter = DeadLetter(batch.topic.partition("+")[0], batch.partition, offset, STAGE, error, key, value, [], name)
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


_key = cache(mask_key)
