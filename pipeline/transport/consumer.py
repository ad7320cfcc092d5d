"""Faust's consumer: what Faust and librdkafka want of each other, and of the slices.

The thread of the reader polls (`reader`), `beginnings` decides from where, the backlog keeps what was fetched, and the slices
deliver and commit (`slices`). Here is what holds them together: membership, rebalances, and the interface of Faust. Its own
Fetcher, commit timer and seeks are idle.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, cast

from confluent_kafka import Message as RdMessage
from confluent_kafka import TopicPartition
from faust.assignor.client_assignment import ClientAssignment
from faust.transport import consumer as faust_consumer
from faust.types import TP, ConsumerMessage, Message
from mode.utils.futures import notify

from pipeline.transport.backlog import Backlog
from pipeline.transport.base import BaseTransport
from pipeline.transport.batch import Batch, BatchSchema
from pipeline.transport.beginnings import Beginnings
from pipeline.transport.events import message_of
from pipeline.transport.fatal import stop_process
from pipeline.transport.participant import is_virtual
from pipeline.transport.producer import Producer
from pipeline.transport.reader import Reader
from pipeline.transport.recovery import end_recovery_at, seek
from pipeline.transport.slices import Slices

TOPICS_DEADLINE_S = 10.0
"""Seconds that a worker waits for a topic which does not exist."""


class Consumer(faust_consumer.Consumer):
    """One per worker."""

    transport: BaseTransport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backlog = Backlog()
        self.transaction = self.transport.transaction
        self.questions = self.transport.questions()
        self.slices = Slices(self, self.transport, self.backlog)
        conf = self.app.conf
        self.beginnings = Beginnings(
            self, self.transport, self.questions, conf.id, latest=conf.consumer_auto_offset_reset == "latest"
        )
        self._assigned: set[TP] = set()
        self._awaited: ConsumerMessage | None = None
        self._seeks: Counter[TP] = Counter()
        """How often a partition was sought: an end that was reached before a seek is none any more."""
        self._generation = 0
        self._is_closing = False
        self._background: set[asyncio.Task[None]] = set()

    async def on_start(self) -> None:
        """Start the reader's thread and the slices; a client reads nothing but its replies, and they come outside the group."""
        if self.app.client_only:
            return
        await cast("Producer", self.app.producer).claim()
        conf = self.transport.consumer_conf()
        self.reader = Reader(
            conf,
            self.backlog,
            incremental=self.transport.group_protocol == "consumer",
            never_read=self._is_fence,
            on_records=self._arrive,
            on_end=self._on_end,
            on_gone=self.beginnings.gone,
            starts=self.beginnings.of,
            rebalance=self._rebalance,
        )
        self.reader.start()
        self.transaction.commit_offsets = self.reader.commit
        self.slices.start()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for the agents' topics and the fences."""
        if self.app.client_only or self.app.should_stop or self._is_closing:
            return
        for channel in cast("Any", self.app.topics):
            if channel.pattern is not None:
                stop_process(
                    f"a topic with the pattern {channel.pattern.pattern!r} would never be read: Faust reads topics by names",
                    hint="app.topic(name, another_name)",
                )
        fences = {participant.fence for participant in self.transport.participants if participant.fence}
        real = fences | {topic for topic in topics if not is_virtual(topic)}
        await self._require(real)
        positions = {topic for participant in self.transport.participants for topic in participant.positions_of}
        self.transport.logs.update(await self.questions.logs(real | positions))
        await self.reader.subscribe(sorted(real))

    async def _require(self, topics: set[str]) -> None:
        deadline = time.monotonic() + TOPICS_DEADLINE_S
        while missing := await self.questions.missing(topics):  # one made a moment ago is not known everywhere at once
            if time.monotonic() > deadline:
                stop_process(
                    f"topics that agents or tables read do not exist: {', '.join(missing)}",
                    hint="create them, with as many partitions as the topics they are used with",
                )
            await asyncio.sleep(0.2)

    def _is_fence(self, topic: str) -> bool:
        return any(topic == participant.fence for participant in self.transport.participants)

    # -- state and sources ---------------------------------------------------------------------------------------

    def hold(self, tps: Iterable[TP], holder: str) -> None:
        """Keep partitions back until the holder's state of them is there; the others run."""
        for tp in tps:
            self.backlog.held.setdefault(tp, set()).add(holder)

    def release(self, tps: Iterable[TP], holder: str) -> None:
        """Let partitions run that nobody else holds."""
        for tp in tps:
            holders = self.backlog.held.get(tp, set())
            holders.discard(holder)
            if not holders:
                self.backlog.held.pop(tp, None)
        self.slices.news.set()

    def give_up_and_hold(self, tps: Iterable[TP], holder: str, reason: str) -> None:
        """Give the slice under way up, and keep partitions back until they are released: no record of them is at fault."""
        self.hold(tps, holder)
        self.slices.give_up_slice(reason)

    def is_held_by_none_but(self, tp: TP, holder: str) -> bool:
        """Say whether a partition is this worker's, and nobody else holds it."""
        return tp in self._assigned and self.backlog.held.get(tp, set()) <= {holder}

    def has_backlog(self, tp: TP) -> bool:
        """Say whether fetched records of a partition wait."""
        return bool(self.backlog.queues.get(tp))

    def offer(self, tp: TP, value: Any) -> bool:
        """Add what a source has read to the backlog; False: the partition is not this worker's any more, drop it."""
        if tp not in self._assigned:
            return False
        self.slices.deliveries.offer(tp, value)
        self.slices.news.set()
        return True

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the slices; its failure ends the worker."""

        async def run() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - the partition would silently be idle
                await self.slices.give_up("finding the offset to read from", error)

        task = asyncio.ensure_future(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- rebalance: called by the reader's thread, which waits --------------------------------------------------------

    async def _rebalance(self, new: set[TP], gone: set[TP], lost: bool) -> None:
        app = self.app
        self.slices.is_rebalancing = True
        self.slices.news.set()  # end the slice
        try:
            if app.should_stop or self._is_closing:
                self._assigned -= gone
                return
            app.on_rebalance_start()
            async with self.between_slices:
                new, gone = self._with_sources(new), self._with_sources(gone)
                self._assigned = (self._assigned | new) - gone
                for tp in gone:
                    self.slices.drop(tp)
                    self.beginnings.drop(tp)
                self.backlog.measure()
                self._generation += 1
                app.consumer_generation_id = self.slices.deliveries.generation = self._generation
                self._tell_assignor()
                for participant in self.transport.participants:
                    participant.revoked(frozenset(gone))
                if gone:
                    await self.on_partitions_revoked(gone)
                if new or not gone:  # an assignment, an empty one too: a spare worker is ready as well
                    for participant in self.transport.participants:
                        participant.assigned(frozenset(new))
                    await self.on_partitions_assigned(set(self._assigned), self._generation)
        finally:
            self.slices.is_rebalancing = False
            self.slices.news.set()
        self.log.info(
            "Partitions: %d new, %d gone%s, %d in all",
            len(self.worked_on(new)),
            len(self.worked_on(gone)),
            " (lost)" if lost else "",
            len(self.worked_on(self._assigned)),
        )

    def worked_on(self, tps: Iterable[TP]) -> set[TP]:
        """Return those of the partitions that are read: a fence goes with another one, and counts for nothing of its own."""
        return {tp for tp in tps if not self._is_fence(tp.topic)}

    def _with_sources(self, tps: set[TP]) -> set[TP]:
        virtual = {TP(s.topic, tp.partition) for s in self.transport.sources for tp in tps if tp.topic == s.fence}
        return tps | virtual

    def _tell_assignor(self) -> None:
        """Say what Faust's assignor would have said; table recovery reads it."""
        actives: dict[str, list[int]] = {}
        for tp in self._assigned:
            if not (is_virtual(tp.topic) or self._is_fence(tp.topic)):  # what a participant recovers, Faust does not
                actives.setdefault(tp.topic, []).append(tp.partition)
        assignor = cast("Any", self.app.assignor)
        assignor._assignment = ClientAssignment(actives=actives, standbys={})  # noqa: SLF001
        assignor._topic_groups = dict.fromkeys(actives, 0)  # noqa: SLF001

    # -- slices: see `SlicesHost` -------------------------------------------------------------------------------------

    @property
    def between_slices(self) -> asyncio.Lock:
        """Taken while a slice runs."""
        return self.slices.between

    @property
    def is_flowing(self) -> bool:
        """Whether Faust lets messages through at all."""
        return self.flow_active

    def _arrive(self, runs: list[tuple[TP, list[RdMessage], int]]) -> None:
        for tp, messages, size in runs:
            if tp in self._assigned:
                self.backlog.add(tp, messages, size)
        self.backlog.measure()
        self.slices.news.set()

    def may_run(self, tp: TP) -> bool:
        """Say whether a partition's records may be delivered to agents."""
        return (
            tp in self._active_partitions
            and self.flow_active
            and not self.app.rebalancing
            and not self._is_changelog_tp(tp)
            and bool(cast("Any", self.app.topics)._tp_index.get(tp))  # noqa: SLF001 - else nobody would get them
        )

    def may_recover(self, tp: TP) -> bool:
        """Say whether a partition is a changelog that Faust reads."""
        return tp in self._active_partitions and self.flow_active and self._is_changelog_tp(tp)

    def is_changelog(self, tp: TP) -> bool:
        """Say whether a partition is of a changelog that Faust reads, from its beginning."""
        return self._is_changelog_tp(tp)

    def schema_of(self, topic: str) -> BatchSchema | None:
        """Return the schema of a batch-native topic, None for one of single events."""
        channels = cast("Any", self.app.topics)._topic_name_index.get(topic, ())  # noqa: SLF001
        return next((channel.schema for channel in channels if isinstance(channel.schema, BatchSchema)), None)

    def deliver(self, message: ConsumerMessage) -> Awaitable[None]:
        """Hand a message to Faust's channels."""
        return self.callback(message)

    async def wait_for_ack(self, message: ConsumerMessage) -> None:
        """Wait until this message is acked, for a moment."""
        self._awaited, self._waiting_for_ack = message, asyncio.get_running_loop().create_future()
        await asyncio.wait([self._waiting_for_ack], timeout=0.02)
        self._awaited = self._waiting_for_ack = None

    def ack(self, message: Message) -> bool:
        """Take note that all streams are done with a message. Slices count; Faust's lists of offsets are not kept."""
        if message.acked:
            return False
        message.acked = True
        if message is self._awaited:
            notify(self._waiting_for_ack)
        return True

    def settled(self, tps: Iterable[TP], offsets: Mapping[TP, int] | None) -> None:
        """Take note that a slice is over; `offsets`: what it has committed, None when it was aborted."""
        if offsets is not None:
            self._committed_offset.update(offsets)
            self.app.monitor.on_tp_commit(dict(offsets))
        for tp in tps:  # where an app has a stream class of its own, that fills them
            self._acked.pop(tp, None)
            self._acked_index.pop(tp, None)

    def seconds_without_commit(self) -> float:
        """Return the seconds since which there is work and nothing of it was committed."""
        return self.slices.seconds_without_commit()

    def blame(self, batch: Batch, error: Exception) -> bool:
        """Redo the slice without the record at which an agent has raised; False: it must be the agent, stop."""
        return self.slices.blame(batch, error)

    async def on_task_error(self, exc: BaseException) -> None:
        """End the worker when an agent has raised: its slice must not commit, and Faust would ack the message."""
        await self.slices.give_up("an agent", exc)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def wait_empty(self) -> None:
        """Stop: end the last slice, leave the group. Called by Faust after it has cleared the agents' queues."""
        if not self.app.should_stop or self._is_closing or not self.slices.has_started:
            return
        self._is_closing = True
        await self.slices.stop()
        for participant in self.transport.participants:
            participant.revoked(frozenset(self._assigned))
        self._assigned.clear()
        await self.reader.close()

    async def commit_and_end_transactions(self) -> None:
        """Stop without waiting for the agents is the same here: what is not acked is processed again."""
        await self.wait_empty()

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Do nothing: slices commit."""
        return False

    # -- recovery of app.Table ----------------------------------------------------------------------------------------

    def _on_end(self, tp: TP, offset: int) -> None:
        if self._is_changelog_tp(tp) and not self._is_fence(tp.topic):
            seeks = self._seeks[tp]
            self.in_background(end_recovery_at(self, self.backlog, tp, offset, lambda: self._seeks[tp] == seeks))

    # -- the rest of Faust's consumer interface -----------------------------------------------------------------------

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """Create a topic if it is missing."""
        await self.transport.create_topic(topic, partitions, replication, **options)

    def assignment(self) -> set[TP]:
        """Return the partitions of this worker, those of sources included."""
        return set(self._assigned)

    async def perform_seek(self) -> None:
        """Do nothing: librdkafka starts at the stable committed offset by itself."""

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Return the committed offsets of the assignment."""
        found = {tp: await self.questions.committed(tp) for tp in self._assigned if not is_virtual(tp.topic)}
        return {tp: offset for tp, offset in found.items() if offset is not None}

    async def _seek(self, partition: TP, offset: int) -> None:
        await self.seek_wait({partition: offset})

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Read on from other offsets; table recovery does."""
        for tp, offset in partitions.items():
            await self.reader.call(
                seek(tp, offset, partial(asyncio.get_running_loop().call_soon_threadsafe, self._sought, tp))
            )

    def _sought(self, tp: TP) -> None:
        """Forget what was fetched before a seek. Called in the order in which the reader's thread has done all this."""
        self.backlog.drop(tp)
        self._seeks[tp] += 1

    async def position(self, tp: TP) -> int | None:
        """Return the next offset that will be fetched."""
        answer = await self.reader.call(lambda rd: rd.position([TopicPartition(*tp)]))
        return int(answer[0].offset)

    async def earliest_offsets(self, *tps: TP) -> dict[TP, int]:
        """Return the first offsets."""
        return {tp: low for tp, (low, _) in (await self.questions.watermarks(tps)).items()}

    async def highwaters(self, *tps: TP) -> dict[TP, int]:
        """Return the ends, before open transactions."""
        return {tp: high for tp, (_, high) in (await self.questions.watermarks(tps)).items()}

    def highwater(self, tp: TP) -> int:
        """Return an unknown end: lag is measured elsewhere."""
        return -1

    def topic_partitions(self, topic: str) -> int | None:
        """Return an unknown count: the producer partitions."""
        return None

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """Return the partition of a key."""
        if partition is not None:
            return partition
        return self.app.producer.key_partition(topic, key or b"").partition

    def resume_flow(self) -> None:
        """Let slices run again."""
        super().resume_flow()
        self.slices.news.set()

    async def _drain_messages(self, fetcher: Any) -> None:
        with suppress(asyncio.CancelledError):  # Faust stops its idle fetcher so, in a rebalance
            await fetcher.wait_until_stopped()

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return False

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, list[Any]]:
        return {}

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        return message_of(tp, record, self._generation)

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)
