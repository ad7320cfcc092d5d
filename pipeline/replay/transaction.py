"""The transactions of a replay: a producer of its own ID, its group's offsets, and Kafka's errors in words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from models.dead_letter import Headers
from pipeline.errors import FatalError
from pipeline.limits import HEADROOM
from pipeline.settings.root import Settings
from pipeline.topics.admin import unreachable
from pipeline.transport import clients

log = logging.getLogger(__name__)
REPLAY_TIMEOUT_S = 30.0
GONE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}  # noqa: SLF001 - the documented name of the code
"""What a consumer says that is to read records that are not there."""


def produce(
    producer: Producer,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    partition: int,
    headers: Headers,
) -> None:
    """Write a record; waits while the queue is full."""
    write = partial(producer.produce, topic, value, key, partition, headers=headers)  # type: ignore[arg-type]
    clients.with_room(write, producer.poll)


def transactional(settings: Settings, name: str) -> Producer:
    """Return a producer of this transactional ID, which evicts the one that had it before."""
    conf = {
        **clients.TUNED,
        "linger.ms": 5,
        "message.max.bytes": settings.kafka.max_message_bytes + HEADROOM,
        "queue.buffering.max.messages": 1_000_000,
        **settings.kafka.conf,
    }
    with on_cluster():
        return clients.transactional(conf, name, REPLAY_TIMEOUT_S, logger=log)


def group_metadata(settings: Settings, name: str) -> Any:
    """Return the metadata of a group that has no members: the transactional ID keeps others out."""
    consumer = reader(settings, name)
    try:
        return consumer.consumer_group_metadata()
    finally:
        consumer.close()


def finish(producer: Producer, offsets: list[TopicPartition], group: Any) -> None:
    """Commit the transaction, with offsets of the group."""
    if offsets:
        producer.send_offsets_to_transaction(offsets, group, REPLAY_TIMEOUT_S)
    producer.commit_transaction(REPLAY_TIMEOUT_S)


@contextmanager
def on_cluster() -> Iterator[None]:
    """Turn what Kafka raises into errors that say what to type next."""
    try:
        yield
    except KafkaException as error:
        if error.args[0].code() == KafkaError._FENCED:  # noqa: SLF001 - the documented name of the code
            raise FatalError("another process has taken this replay over", hint="headwater replay list") from error
        raise unreachable(error) from error


def reader(settings: Settings, group: str) -> Consumer:
    """Return a consumer of committed records that gets where to read: an offset that is gone is an error."""
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
