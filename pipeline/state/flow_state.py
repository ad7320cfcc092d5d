"""Which items were joined with which references, and their last changes: to send them again when a reference changes.

By partition of raw, on disk, exactly once: an entry enters the transaction of the slice that sends the change, and how far the
changes of a reference have been followed enters the one that sends changes again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec
from confluent_kafka import Message
from faust.types import TP

from pipeline.settings.enrich import PARTITIONED
from pipeline.state import changelog
from pipeline.state.held_changes import FlowItem, HeldChange, HeldState
from pipeline.state.items import PartitionItems
from pipeline.state.table_partitions import TablePartition
from pipeline.transport import Slice, Transport
from pipeline.transport.logs import UNKNOWN, Log

if TYPE_CHECKING:
    from pipeline.transport.consumer import Consumer

SENT_AGAIN_AT_ONCE = 2_000
"""Items of a partition that are sent again with one slice at most, and changes of references that are looked at."""


class Reference(NamedTuple):
    """An item of a reference table."""

    table: str
    key: bytes


class JoinedItem(NamedTuple):
    """An item of a reference table that was added to a change."""

    table: str
    key: bytes
    digest: bytes
    """Of the item as it was then: a change that has it already is not sent again."""


class JoinEntry(msgspec.Struct, array_like=True, frozen=True):
    """The last change of an item in a flow, and what it was joined with."""

    flow: str
    item: bytes
    """Its table and its key."""
    joints: list[JoinedItem]
    last: HeldChange


class ReferenceChange(NamedTuple):
    """A change of a reference: where it is on the reference topic."""

    table: str
    partition: int
    offset: int
    key: bytes


class Reached(msgspec.Struct, array_like=True, frozen=True):
    """How far the changes of a partition of a reference topic have been followed."""

    offset: int
    after: bytes = b""
    """Of the change at this offset: the index entry behind which it continues; b'' for its beginning."""
    log: str = ""
    """The log of the reference topic that the offset is of; '' in a state of an earlier version."""


INDEX = b"x/"
encode = msgspec.msgpack.encode
_decode_entry = msgspec.msgpack.Decoder(JoinEntry).decode
_decode_reached = msgspec.msgpack.Decoder(Reached).decode


class Joins:
    """The joined items of one partition, within a slice."""

    def __init__(self, part: TablePartition, logs: Mapping[str, Log] | None = None) -> None:
        """Name what the topics of the reference tables are now, by table: `logs`."""
        self._part, self._logs = part, logs or {}

    def put(self, place: FlowItem, joints: Sequence[JoinedItem], last: HeldChange) -> None:
        """Take note of an item's last change in a flow; without joints, of none."""
        key = _entry_of(place)
        before = self._part.get(key)
        if before is None and not joints:
            return
        old = set[bytes]() if before is None else _indices(_decode_entry(before).joints, place)
        new = dict.fromkeys(_indices(joints, place), key)
        writes: dict[bytes, bytes | None] = dict.fromkeys(old - new.keys())
        writes |= new
        writes[key] = encode(JoinEntry(place.flow, place.item, list(joints), last)) if joints else None
        self._part.write(writes)

    def __bool__(self) -> bool:
        """Whether any item is known that was joined, and committed."""
        return next(iter(self._part.keys(INDEX, INDEX)), None) is not None

    def get(self, key: bytes) -> JoinEntry | None:
        """Return the entry of a key that the index names."""
        found = self._part.get(key)
        return None if found is None else _decode_entry(found)

    def of(self, place: FlowItem) -> JoinEntry | None:
        """Return an item's entry."""
        return self.get(_entry_of(place))

    def joined(self, place: FlowItem, one: Reference) -> JoinEntry | None:
        """Return an item's entry if its last change was joined with this reference."""
        entry = self.of(place)
        joints = () if entry is None else entry.joints
        return entry if any((joint.table, joint.key) == one for joint in joints) else None

    def with_reference(self, one: Reference, after: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """Return index entries of a reference behind one of them, in order, with the keys of the items' entries."""
        prefix = _prefix_of(one)
        start = after + b"\0" if after else prefix
        keys = sorted(
            {
                *islice(self._part.keys(prefix, start), most),
                *(key for key in self._part.written(prefix) if key >= start),
            }
        )[:most]
        return [(key, value) for key, value in zip(keys, self._part.get_many(keys), strict=True) if value is not None]

    def reached(self, table: str, partition: int) -> Reached | None:
        """Return how far a partition of a reference topic has been followed; None: it never was, or was another log."""
        found = self._part.get(_reached_of(table, partition))
        reached = None if found is None else _decode_reached(found)
        if reached is None or not Log.parse(reached.log).may_be(self._logs.get(table, UNKNOWN)):
            return None
        return reached

    def reach(self, table: str, partition: int, reached: Reached) -> None:
        """Take note of how far it has been followed."""
        named = msgspec.structs.replace(reached, log=str(self._logs.get(table, UNKNOWN)))
        self._part.write({_reached_of(table, partition): encode(named)})


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _entry_of(place: FlowItem) -> bytes:
    return b"i/" + _digest(place.flow.encode() + b"\0" + place.item)


def _prefix_of(one: Reference | JoinedItem) -> bytes:
    return INDEX + _digest(one.table.encode() + b"\0" + one.key) + b"/"


def _index_of(one: JoinedItem, place: FlowItem) -> bytes:
    return _prefix_of(one) + _entry_of(place)[2:]


def _indices(joints: Iterable[JoinedItem], place: FlowItem) -> set[bytes]:
    """Return index entries. Partitioned tables need none: the item's own key is the reference's, so `joined` finds it."""
    return {_index_of(joint, place) for joint in joints if not joint.table.startswith(PARTITIONED)}


def _reached_of(table: str, partition: int) -> bytes:
    return f"d/{table}/{partition}".encode()


class FlowState(HeldState):
    """Follows the slices. `joins` and `items` are for the transform agent; `emit` sends changes again, in the slice."""

    def __init__(
        self,
        transport: Transport,
        topic: str,
        changelog_topic: str,
        directory: Path,
        *,
        is_there: Callable[[int, str, bytes], bool],
        release: Callable[[int, FlowItem], None],
        watched: Callable[[], Mapping[str, str]],
        emit: Callable[[int, Reference, Sequence[JoinEntry]], None],
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`watched` gives the topics of the reference tables whose changes are followed, by table."""
        super().__init__(
            transport, topic, changelog_topic, directory, is_there=is_there, release=release, is_ready=is_ready
        )
        self._watched, self._emit = watched, emit
        self._lock = threading.Lock()
        self._logs: dict[str, Log] = {}
        """What the topics of the watched reference tables are, by table."""
        self._news: dict[int, list[ReferenceChange]] = {}
        """By partition of raw, the changes of references that have not been followed there, or not for certain."""

    def joins(self, partition: int) -> Joins:
        """Return the joined items of a partition, the slice under way included."""
        return Joins(self.part(partition), self._logs)

    def items(self, partition: int) -> PartitionItems:
        """Return the items of the partitioned reference tables of a partition, the slice under way included."""
        return PartitionItems(self.part(partition))

    def changed(self, table: str, records: Iterable[Message]) -> None:
        """Take note of changes of a reference table; in its follower's thread."""
        found = [_change(table, record) for record in records]
        with self._lock:
            for news in self._news.values():
                news.extend(found)

    def due(self) -> bool:
        """Say whether a reference has changed."""
        return (any(self._news.values()) and self._is_ready()) or super().due()

    def finish(self, work: Slice) -> None:
        """Send again what was joined with references that have changed, and write the changelog."""
        for number in self.all if self._is_ready() else ():
            if self._news.get(number):
                self._follow(number)
        super().finish(work)

    def _follow(self, number: int) -> None:
        joins, left = self.joins(number), SENT_AGAIN_AT_ONCE
        with self._lock:
            news = self._news[number][: 2 * SENT_AGAIN_AT_ONCE]  # those of the last slice are among them
        committed, now = set[ReferenceChange](), set[tuple[str, int]]()
        looked = 0
        for change in news:
            if looked == SENT_AGAIN_AT_ONCE:
                break
            reached, place = joins.reached(change.table, change.partition), (change.table, change.partition)
            if reached is not None and reached.offset > change.offset:
                if place not in now:  # else it was in this slice, which is not committed yet
                    committed.add(change)
                continue
            looked += 1
            now.add(place)
            after = reached.after if reached is not None and reached.offset == change.offset else b""
            reference = Reference(change.table, change.key)
            found = joins.with_reference(reference, after, left)
            entries = [entry for _, key in found if (entry := joins.get(key)) is not None]
            if entries:
                self._emit(number, reference, entries)
            left -= len(found)
            if left <= 0:
                joins.reach(change.table, change.partition, Reached(change.offset, found[-1][0]))
                break
            joins.reach(change.table, change.partition, Reached(change.offset + 1))
        # Only what an earlier slice has followed is let go: this one may be aborted.
        with self._lock:
            self._news[number] = [change for change in self._news[number] if change not in committed]

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Let go of partitions."""
        with self._lock:
            for tp in partitions:
                if tp.topic == self.fence:
                    self._news.pop(tp.partition, None)
        super().revoked(partitions)

    async def _recover(self, consumer: Consumer, tp: TP, claim: object) -> TablePartition:
        with self._lock:
            self._news[tp.partition] = []  # what changes from here on is heard of
        partition = await super()._recover(consumer, tp, claim)
        watched = self._watched()
        found = await consumer.questions.logs(list(watched.values()))
        self._logs |= {table: found[topic] for table, topic in watched.items() if topic in found}
        joins, missed = Joins(partition, self._logs), list[ReferenceChange]()
        for table, topic in watched.items():
            for number in range(await consumer.questions.partitions(topic)):
                end = await consumer.questions.end(TP(topic, number))
                reached = joins.reached(table, number)
                # Where none was ever followed it is not known what the joined items have seen: from the beginning, then.
                start = reached.offset if reached is not None else 0 if joins else end
                if start < end:
                    await asyncio.to_thread(self._read, missed, table, TP(topic, number), start, end)
        with self._lock:
            if tp.partition in self._news:  # else it has been revoked meanwhile
                self._news[tp.partition] = missed + self._news[tp.partition]
        return partition

    def _read(self, missed: list[ReferenceChange], table: str, tp: TP, start: int, end: int) -> None:
        """Read the changes of a reference that came while nobody had the partition."""

        def apply(records: list[Message]) -> bool:
            missed.extend(_change(table, record) for record in records)
            return True

        changelog.read_changelog(self._transport.client_conf(), tp, start, end, apply)


def _change(table: str, record: Message) -> ReferenceChange:
    return ReferenceChange(
        table, cast("int", record.partition()), cast("int", record.offset()), cast("bytes", record.key())
    )
