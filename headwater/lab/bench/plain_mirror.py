"""The limit: copying a topic to another cluster exactly once as a plain loop, for one purpose and nothing else.

Records with key, headers, timestamp and partition, and the positions, in one transaction of the other cluster each 100 ms.
It knows no loops, refuses no topic, holds no partition back, and does not fence a former owner of a partition.

Arguments: servers, group, topic; servers and topic there.
"""

from __future__ import annotations

import sys
import time
from typing import Any, cast

from confluent_kafka import Consumer, Producer, TopicPartition

INTERVAL = 0.1
FETCH = 2_000


def main(servers: str, group: str, source: str, other: str, output: str) -> None:
    """Run until killed."""
    producer = Producer(
        {"bootstrap.servers": other, "transactional.id": group, "linger.ms": 2, "batch.size": 1_000_000}
        | {"compression.type": "zstd", "queue.buffering.max.messages": 1_000_000}
    )
    producer.init_transactions()
    there = Consumer({"bootstrap.servers": other, "group.id": group, "enable.auto.commit": False})
    membership = there.consumer_group_metadata()
    there.close()
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False, "fetch.queue.backoff.ms": 20}
        | {"auto.offset.reset": "earliest", "isolation.level": "read_committed", "queued.max.messages.kbytes": 16_384}
    )
    consumer.subscribe([source])
    produce = cast("Any", producer.produce)
    offsets: dict[int, int] = {}
    began = 0.0
    mark = "mirrored_from", b"here"
    while True:
        if offsets and time.monotonic() - began >= INTERVAL:
            at = [TopicPartition(output, partition, offset) for partition, offset in offsets.items()]
            producer.send_offsets_to_transaction(at, membership)
            producer.commit_transaction()
            offsets.clear()
        first = consumer.poll(0.01 if offsets else 0.1)
        if first is None:
            continue
        if not offsets:
            began = time.monotonic()
            producer.begin_transaction()
        for record in [first, *consumer.consume(FETCH, 0)]:
            if record.error() is not None:
                continue
            partition = cast("int", record.partition())
            headers: Any = [*(record.headers() or ()), mark]
            produce(output, record.value(), record.key(), partition, None, None, record.timestamp()[1], headers)
            offsets[partition] = cast("int", record.offset()) + 1


if __name__ == "__main__":
    main(*sys.argv[1:])
