"""Standbys: copies of state that other workers own, kept warm, so that a fail-over reads the tail of a changelog only.

A standby is never needed for what is right, only for how soon: the owner's recovery checks a copy as it checks its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import ConsumerGroupState, KafkaException, Message, TopicPartition

from pipeline.state.changelog import GONE
from pipeline.transport import Transport, clients
from pipeline.transport.fatal import stop_process
from pipeline.transport.reader import member_id

if TYPE_CHECKING:
    from pipeline.transport.consumer import Consumer

log = logging.getLogger(__name__)
S = TypeVar("S")
STANDBY_LOOK_S = 10.0
"""Seconds between two looks at who owns what; a rebalance is looked at at once."""
UNSETTLED_S = 1.0
"""Seconds until the next look at a group whose partitions are being assigned."""
FETCH = 500


def shared_out(members: Sequence[str], partitions: Sequence[int]) -> dict[int, str]:
    """Return the owner of each partition, as the assignor `range` would have it."""
    ordered, owners = sorted(members), {}
    share, more = divmod(len(partitions), len(ordered))
    rest = iter(sorted(partitions))
    for index, member in enumerate(ordered):
        for _ in range(share + (index < more)):
            owners[next(rest)] = member
    return owners


def chosen(me: str, owners: Mapping[int, str], replicas: int) -> set[int]:
    """Return the partitions that would come to this member if up to `replicas` of the others were lost.

    Members that own nothing are not in `owners`; each of them counts itself in, so that a spare worker is warm as well.
    """
    others = sorted(set(owners.values()) - {me})
    mine = {partition for partition, owner in owners.items() if owner == me}
    found: set[int] = set()
    for count in range(1, min(replicas, len(others)) + 1):
        for lost in combinations(others, count):
            left = shared_out([me, *(member for member in others if member not in lost)], list(owners))
            found.update(partition for partition, owner in left.items() if owner == me)
    return found - mine


@dataclass(eq=False, slots=True)
class _Copy(Generic[S]):
    state: S


@dataclass(frozen=True)
class Keeping(Generic[S]):
    """How a state is kept; all of it blocks and runs in the standbys' thread."""

    open: Callable[[int], S]
    """Open the state of a partition."""
    next_offset: Callable[[S], int]
    """Say where in the changelog the state continues."""
    apply: Callable[[S, list[Message]], None]
    """Take committed changelog records in, in order."""
    close: Callable[[S], None]


class Standbys(Generic[S]):
    """Follows the changelog of partitions for which this worker is chosen, committed records only, in a thread of its own.

    A state has one holder at a time: `release` takes it away from here, `keep` brings it.
    """

    def __init__(self, transport: Transport, topic: str, changelog: str, replicas: int, keeping: Keeping[S]) -> None:
        self.topic, self.changelog, self.replicas = topic, changelog, replicas
        self._transport, self._keeping = transport, keeping
        self._lock = threading.Lock()
        self._wanted: frozenset[int] = frozenset()
        """Set on the event loop only."""
        self._copies: dict[int, _Copy[S]] = {}
        self._brought: deque[tuple[int, S]] = deque()
        self._news = asyncio.Event()
        self._started = False
        self._thread = threading.Thread(target=self._run, name=f"standby-{changelog}", daemon=True)

    async def release(self, partition: int) -> S | None:
        """Give a state to the partition's new owner, if there is one here, when the fetch under way has been applied."""
        self._wanted -= {partition}
        return await asyncio.to_thread(self._give, partition)

    def keep(self, partition: int, state: S) -> None:
        """Take the state of a partition that has gone to another worker. The next look says whether it stays."""
        self._brought.append((partition, state))
        self._wanted |= {partition}

    def rebalanced(self, consumer: Consumer, owned: Callable[[], Collection[int]]) -> None:
        """Look again which partitions to keep a copy of; `owned` are this worker's own."""
        self._news.set()
        if not self._started:
            self._started = True
            self._thread.start()
            consumer.add_future(self._look(consumer, owned))

    async def _look(self, consumer: Consumer, owned: Callable[[], Collection[int]]) -> None:
        while True:
            self._news.clear()
            owners = await asyncio.to_thread(self._owners)
            membership = consumer.reader.membership
            settled = owners is not None and membership is not None
            if owners is not None and membership is not None:
                me = self._transport.app.conf.consumer_group_instance_id or member_id(membership)
                self._wanted = frozenset(chosen(me, owners, self.replicas) - set(owned()))
            try:
                await asyncio.wait_for(self._news.wait(), STANDBY_LOOK_S if settled else UNSETTLED_S)
            except asyncio.TimeoutError:
                continue

    def _owners(self) -> dict[int, str] | None:
        group, client = self._transport.app.conf.id, clients.admin(self._transport.client_conf())
        try:
            found = client.describe_consumer_groups([group], request_timeout=STANDBY_LOOK_S)[group].result(
                2 * STANDBY_LOOK_S
            )
        except (KafkaException, concurrent.futures.TimeoutError) as error:
            log.warning("Standbys of %s: the group cannot be read: %r", self.changelog, error)
            return None
        if found.state != ConsumerGroupState.STABLE:
            return None
        return {
            tp.partition: cast("str", member.group_instance_id or member.member_id)
            for member in found.members
            for tp in member.assignment.topic_partitions
            if tp.topic == self.topic
        }

    def _give(self, partition: int) -> S | None:
        with self._lock:
            self._take_brought()
            copy = self._copies.pop(partition, None)
        return None if copy is None else copy.state

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            consumer = clients.consumer(  # the group is never joined and never committed
                self._transport.client_conf(), f"{self.changelog}.standby", fetch_wait_max_ms=500
            )
            read: dict[int, _Copy[S]] = {}
            while True:
                with self._lock:
                    self._settle()
                    self._assign(consumer, read)
                messages = consumer.consume(FETCH, 0.2)
                with self._lock:
                    self._apply(messages, read)
                self._go_on_behind(consumer, messages)
        except Exception as error:  # noqa: BLE001 - half a copy is worse than none, and must not be handed on
            stop_process(f"the standbys of {self.changelog} failed: {error!r}", hint="df -h; headwater check")

    def _go_on_behind(self, consumer: RdConsumer, messages: Sequence[Message]) -> None:
        """Continue with what retention has left of a changelog: whether a copy has enough its next owner finds out."""
        for message in messages:
            if (error := message.error()) is not None and error.code() == GONE:
                at = TopicPartition(self.changelog, cast("int", message.partition()))
                low, _ = consumer.get_watermark_offsets(at, STANDBY_LOOK_S)
                log.info(
                    "Standby of %s[%d]: offset %s is gone, continues from %d",
                    at.topic,
                    at.partition,
                    message.offset(),
                    low,
                )
                consumer.incremental_unassign([at])
                consumer.incremental_assign([TopicPartition(at.topic, at.partition, low)])

    def _take_brought(self) -> set[int]:
        brought = set()
        while self._brought:
            partition, state = self._brought.popleft()
            self._copies[partition] = _Copy(state)
            brought.add(partition)
        return brought

    def _settle(self) -> None:
        wanted = self._wanted  # in this order: what is brought is put there first, and wanted a moment later
        wanted |= self._take_brought()
        for partition in [partition for partition in self._copies if partition not in wanted]:
            self._keeping.close(self._copies.pop(partition).state)
        for partition in wanted - self._copies.keys():
            self._copies[partition] = _Copy(self._keeping.open(partition))

    def _assign(self, consumer: RdConsumer, read: dict[int, _Copy[S]]) -> None:
        gone = [partition for partition, copy in read.items() if self._copies.get(partition) is not copy]
        if gone:
            consumer.incremental_unassign([TopicPartition(self.changelog, partition) for partition in gone])
        for partition in gone:
            del read[partition]
        for partition, copy in self._copies.items():
            if partition not in read:
                start = self._keeping.next_offset(copy.state)
                consumer.incremental_assign([TopicPartition(self.changelog, partition, start)])
                read[partition] = copy
                log.info("Standby of %s[%d]: from offset %d", self.changelog, partition, start)

    def _apply(self, messages: Sequence[Message], read: Mapping[int, _Copy[S]]) -> None:
        records: dict[int, list[Message]] = {}
        for message in messages:
            if (error := message.error()) is not None and error.code() == GONE:
                continue
            if error is not None:
                log.warning("Standbys of %s: %s", self.changelog, error)
            else:
                records.setdefault(cast("int", message.partition()), []).append(message)
        for partition, some in records.items():
            copy = self._copies.get(partition)
            if copy is not None and copy is read.get(partition):  # else it was given away since the fetch
                self._keeping.apply(copy.state, some)
