"""Reads topics outside the consumer group, committed records only, from an offset to the end as of now."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.errors import FatalError
from pipeline.settings.root import Settings
from pipeline.topics.admin import unreachable
from pipeline.transport import clients as kafka_clients

READ_TIMEOUT_S = 20.0


@contextmanager
def reading(settings: Settings, group: str = "") -> Iterator[Consumer]:
    """Give a consumer that is outside the group; raise FatalError when the cluster cannot be reached."""
    consumer = kafka_clients.consumer(settings.kafka.conf, group or settings.prefix, enable_partition_eof=True)
    try:
        yield consumer
    except KafkaException as error:
        raise unreachable(error) from error
    finally:
        consumer.close()


def latest(records: Iterable[Message]) -> dict[bytes, bytes]:
    """Return what the records of a compacted topic say by key; what was taken back is left out."""
    found: dict[bytes, bytes] = {}
    for record in records:
        if value := record.value():
            found[record.key() or b""] = value
        else:
            found.pop(record.key() or b"", None)
    return found


def read_topic(consumer: Consumer, topic: str, start: Mapping[int, int], most: int | None) -> list[Message]:
    """Read a topic from these offsets to its end as of now, `most` records at most.

    Raise FatalError when nothing more comes before the end.
    """
    return list(
        each_record(consumer, topic, start) if most is None else islice(each_record(consumer, topic, start), most)
    )


def each_record(consumer: Consumer, topic: str, start: Mapping[int, int]) -> Iterator[Message]:
    """Yield the records of a topic from these offsets to its end as of now; none is kept.

    Raises FatalError when nothing more comes before the end.
    """
    open_partitions = set(start)
    if not start:
        return
    consumer.incremental_assign([TopicPartition(topic, partition, offset) for partition, offset in start.items()])
    deadline = time.monotonic() + READ_TIMEOUT_S
    try:
        while open_partitions:
            found = consumer.consume(1_000, 0.1)
            if found:
                deadline = time.monotonic() + READ_TIMEOUT_S
            elif time.monotonic() > deadline:
                raise FatalError(
                    f"reading {topic}: nothing has arrived for {READ_TIMEOUT_S:.0f} s", hint="headwater check"
                )
            for message in found:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the documented name of the code
                    open_partitions.discard(message.partition() or 0)
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001 - deleted since the offset was asked for
                    at = TopicPartition(topic, message.partition() or 0)
                    low, _ = consumer.get_watermark_offsets(at, READ_TIMEOUT_S)
                    consumer.incremental_unassign([at])
                    consumer.incremental_assign([TopicPartition(topic, at.partition, low)])
    finally:
        consumer.unassign()
