"""The limit: deduplication exactly once as a plain loop, without a framework, for one purpose and nothing else.

The same guarantee as the product: outputs, changelog and offsets in one transaction each 100 ms, fenced by the group; the
store, which is the product's own, written after the commit; state rebuilt from the changelog. What it leaves out is
everything else a worker does.

Arguments: servers, group, input, output, changelog, state directory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import msgspec
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from pipeline.state.buckets import Buckets

INTERVAL = 0.1
FETCH = 2_000
RECENT = 100_000
"""IDs of a partition in memory."""

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(list[bytes]).decode


class Change(msgspec.Struct, gc=False):
    """The one field that is read."""

    event_id: str = msgspec.field(name="eventID")


event_of = msgspec.json.Decoder(Change).decode


def recover(servers: str, changelog: str, stores: dict[int, Buckets]) -> None:
    """Apply what the changelog holds beyond the stores."""
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": changelog, "enable.auto.commit": False}
        | {"auto.offset.reset": "earliest", "isolation.level": "read_committed", "enable.partition.eof": True}
    )
    at = {partition: store.meta("changelog") or 0 for partition, store in stores.items()}
    consumer.assign([TopicPartition(changelog, partition, offset) for partition, offset in at.items()])
    left = len(at)
    while left:
        for message in consumer.consume(500, 1.0):
            if message.error() is not None:
                left -= 1
                continue
            ids, upto = unpack(cast("bytes", message.value())), cast("int", message.offset()) + 1
            remember(stores[cast("int", message.partition())], ids, upto)
    consumer.close()


def remember(store: Buckets, ids: Collection[bytes], upto: int) -> None:
    """Take IDs and the changelog's position into a store."""
    store.add({0: ids}, changelog=upto)
    if len(store) > RECENT:
        store.flush()


def main(servers: str, group: str, source: str, output: str, changelog: str, directory: str) -> None:
    """Run until killed."""
    stores: dict[int, Buckets] = {}
    producer = Producer(
        {"bootstrap.servers": servers, "transactional.id": group, "linger.ms": 2, "batch.size": 1_000_000}
        | {"compression.type": "zstd", "queue.buffering.max.messages": 1_000_000}
    )
    producer.init_transactions()
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False, "fetch.queue.backoff.ms": 20}
        | {"auto.offset.reset": "earliest", "isolation.level": "read_committed"}
        | {"partition.assignment.strategy": "range", "queued.max.messages.kbytes": 16_384}
    )
    pending: dict[int, set[bytes]] = {}
    offsets: dict[int, int] = {}
    began = 0.0
    membership: Any = None

    def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        stores.update({tp.partition: Buckets(Path(directory) / str(tp.partition)) for tp in partitions})
        recover(servers, changelog, stores)

    def revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if offsets:  # what is under way belongs to the next owner
            producer.abort_transaction()
            pending.clear()
            offsets.clear()
        while stores:
            stores.popitem()[1].close()

    def commit() -> None:
        sent: dict[int, Message] = {}
        for partition, ids in pending.items():
            producer.produce(
                changelog,
                pack(ids),
                offsets[partition].to_bytes(8, "big"),
                partition,
                on_delivery=lambda error, message: sent.update({cast("int", message.partition()): message}),
            )
        at = [TopicPartition(source, partition, offset) for partition, offset in offsets.items()]
        producer.send_offsets_to_transaction(at, membership)
        producer.commit_transaction()
        for partition, ids in pending.items():
            remember(stores[partition], ids, cast("int", sent[partition].offset()) + 1)
        pending.clear()
        offsets.clear()

    def take(partition: int, messages: list[Message]) -> None:
        values = [cast("bytes", message.value()) for message in messages]
        ids = [bytes.fromhex(event_of(value).event_id) for value in values]
        first = dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))
        news = stores[partition].unknown(first) - pending.setdefault(partition, set())
        pending[partition] |= news
        fresh = [{"key": messages[at].key(), "value": values[at]} for at in sorted(map(first.__getitem__, news))]
        if fresh:
            producer.produce_batch(output, fresh, partition)
        offsets[partition] = cast("int", messages[-1].offset()) + 1

    consumer.subscribe([source], on_assign=assigned, on_revoke=revoked)
    while True:
        if offsets and time.monotonic() - began >= INTERVAL:
            commit()
        first = consumer.poll(0.01 if offsets else 0.1)
        if first is None:
            continue
        if not offsets:
            began, membership = time.monotonic(), consumer.consumer_group_metadata()
            producer.begin_transaction()
        groups: dict[int, list[Message]] = {}
        for message in [first, *consumer.consume(FETCH, 0)]:
            if message.error() is None:
                groups.setdefault(cast("int", message.partition()), []).append(message)
        for partition, messages in groups.items():
            take(partition, messages)


if __name__ == "__main__":
    main(*sys.argv[1:])
