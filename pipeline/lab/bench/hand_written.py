"""The limit: deduplication exactly once as a plain loop, without a framework, for one purpose and nothing else.

The same guarantee as the product: outputs, changelog and offsets in one transaction each 100 ms, fenced by the group;
RocksDB written after the commit; state rebuilt from the changelog. What it leaves out is everything else a worker does.

Arguments: servers, group, input, output, changelog, state directory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import rocksdict
from confluent_kafka import Consumer, Message, Producer, TopicPartition

INTERVAL = 0.1
FETCH = 2_000

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(list[bytes]).decode


class Change(msgspec.Struct, gc=False):
    """The one field that is read."""

    event_id: str = msgspec.field(name="eventID")


event_of = msgspec.json.Decoder(Change).decode


def open_store(path: str) -> tuple[rocksdict.Rdict, rocksdict.WriteOptions]:
    """Open RocksDB as the product does, and the options of a write without its log."""
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_memtable_prefix_bloom_ratio(0.1)
    options.set_memtable_whole_key_filtering(True)
    table = rocksdict.BlockBasedOptions()
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(32 << 20)
    no_log = rocksdict.WriteOptions()
    no_log.disable_wal = True  # type: ignore[method-assign, assignment]  # a property; the stub is wrong
    return rocksdict.Rdict(path, options), no_log


def recover(servers: str, changelog: str, store: rocksdict.Rdict, partitions: Sequence[int]) -> None:
    """Apply what the changelog holds beyond the store."""
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": changelog, "enable.auto.commit": False}
        | {"auto.offset.reset": "earliest", "isolation.level": "read_committed", "enable.partition.eof": True}
    )
    at = {partition: int(cast("bytes | None", store.get(b"%d" % partition)) or 0) for partition in partitions}
    consumer.assign([TopicPartition(changelog, partition, offset) for partition, offset in at.items()])
    left = len(at)
    while left:
        for message in consumer.consume(500, 1.0):
            if message.error() is not None:
                left -= 1
                continue
            upto = cast("int", message.offset()) + 1
            remember(store, None, cast("int", message.partition()), unpack(cast("bytes", message.value())), upto)
    consumer.close()


def remember(
    store: rocksdict.Rdict, how: rocksdict.WriteOptions | None, partition: int, ids: Sequence[bytes], upto: int
) -> None:
    """Write IDs and the changelog's position, all or nothing."""
    batch = rocksdict.WriteBatch(raw_mode=True)
    for key in ids:
        batch.put(key, b"")
    batch.put(b"%d" % partition, b"%d" % upto)
    store.write(batch, how)


def main(servers: str, group: str, source: str, output: str, changelog: str, directory: str) -> None:
    """Run until killed."""
    store, no_log = open_store(directory)
    producer = Producer(
        {"bootstrap.servers": servers, "transactional.id": group, "linger.ms": 2, "batch.size": 1_000_000}
        | {"compression.type": "lz4", "queue.buffering.max.messages": 1_000_000}
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
        recover(servers, changelog, store, [partition.partition for partition in partitions])

    def revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if offsets:  # what is under way belongs to the next owner
            producer.abort_transaction()
            pending.clear()
            offsets.clear()

    def commit() -> None:
        sent: dict[int, Message] = {}
        for partition, ids in pending.items():
            producer.produce(
                changelog,
                pack(list(ids)),
                offsets[partition].to_bytes(8, "big"),
                partition,
                on_delivery=lambda error, message: sent.update({cast("int", message.partition()): message}),
            )
        at = [TopicPartition(source, partition, offset) for partition, offset in offsets.items()]
        producer.send_offsets_to_transaction(at, membership)
        producer.commit_transaction()
        for partition, ids in pending.items():
            remember(store, no_log, partition, list(ids), cast("int", sent[partition].offset()) + 1)
        pending.clear()
        offsets.clear()

    def take(partition: int, messages: list[Message]) -> None:
        values = [cast("bytes", message.value()) for message in messages]
        ids = [bytes.fromhex(event_of(value).event_id) for value in values]
        news, fresh = pending.setdefault(partition, set()), []
        for key, value, message, known in zip(
            ids, values, messages, cast("Any", store.get(cast("Any", ids))), strict=True
        ):
            if known is None and key not in news:
                news.add(key)
                fresh.append({"key": message.key(), "value": value})
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
