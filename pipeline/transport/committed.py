"""The offsets that a group has committed, each with the log that it is of.

What this version commits carries the log in the offset's metadata. An offset without one is of an earlier version, or was set
by hand (kafka-consumer-groups.sh): it is taken to be of the log that is there now.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from faust.types import TP

from pipeline.retry import kafka_says, within
from pipeline.transport.logs import UNKNOWN, Log

COMMITTED_TIMEOUT_S = 20.0
UNDECIDED = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
"""What a cluster answers while it is still choosing: it is new, has lost a broker, or the topic was made a moment ago."""


class Committed(NamedTuple):
    """What a group has committed in a partition."""

    offset: int | None
    """The offset of the next record to read; None: nothing was committed, or Kafka has forgotten it."""
    log: Log = UNKNOWN
    """The log that it is of; `UNKNOWN` for one of an earlier version, or set by hand."""
    is_stable: bool = True
    """False: a transaction has sent another offset and is not decided yet."""
    mark: str = ""
    """What tells the slice that committed it from all others."""


def committed(
    client: AdminClient,
    group: str,
    tps: Collection[TP],
    *,
    timeout: float = COMMITTED_TIMEOUT_S,
    patience: float = COMMITTED_TIMEOUT_S,
) -> dict[TP, Committed]:
    """Return what a group has committed in partitions; blocks, for up to `patience` seconds while the cluster is choosing.

    A pending offset is not waited for: see `is_stable`. Raises KafkaException.
    """
    if not tps:
        return {}
    asked = ConsumerGroupTopicPartitions(group, [TopicPartition(*tp) for tp in tps])

    def ask() -> dict[TP, Committed]:
        (future,) = client.list_consumer_group_offsets([asked], require_stable=True, request_timeout=timeout).values()
        found = future.result(timeout + 1).topic_partitions or []
        return {TP(str(one.topic), one.partition): _committed(one) for one in found}

    return within(patience, kafka_says(UNDECIDED))(ask)


def _committed(one: TopicPartition) -> Committed:
    if one.error is not None:
        if one.error.code() != KafkaError.UNSTABLE_OFFSET_COMMIT:
            raise KafkaException(one.error)
        return Committed(None, is_stable=False)
    if one.offset < 0:
        return Committed(None)
    log, _, mark = (one.metadata or "").partition(" ")
    return Committed(one.offset, Log.parse(log), mark=mark)
