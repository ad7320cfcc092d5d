"""Offsets that Kafka has forgotten: it drops those of a group without members (offsets.retention.minutes, 7 days).

An agent would silently read its topic again from the beginning. What it has written before is there to prove that it
has read before: outputs and offsets are committed in one transaction, so there is never the one without the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaException, TopicPartition
from faust.types import TP

from pipeline.errors import FatalError
from pipeline.retry import kafka_says, within
from pipeline.settings.root import Settings
from pipeline.state.kept import kept
from pipeline.topics.admin import unreachable
from pipeline.topics.names import Topics
from pipeline.topics.read import read_topic
from pipeline.transport import clients
from pipeline.transport.committed import UNDECIDED
from pipeline.transport.logs import UNKNOWN, logs_of
from pipeline.transport.starts import accept_command

OFFSETS_TIMEOUT_S = 20.0
T = TypeVar("T")


def require_remembered(conf: Mapping[str, Any], settings: Settings, agents: Sequence[str]) -> None:
    """Raise FatalError when an agent has read its topic before, has something to read there, and the group knows no offset.

    Exactly once only: at least once, a crash can leave outputs without an offset.
    """
    if settings.processing_guarantee != "exactly_once":
        return
    topics = Topics(settings)
    written = {
        "deduplicate": (topics.ingest, [topics.raw]),
        "transform": (topics.raw, [*topics.sinks.values(), *topics.references.values()]),
    }
    consumer = clients.consumer(conf, settings.prefix, enable_partition_eof=True)
    try:
        for agent in agents:
            topic, outputs = written.get(agent, ("", []))
            if topic and _is_forgotten(consumer, topic, outputs, settings.partitions):
                raise FatalError(
                    f"the group {settings.prefix} has no offsets in {topic}, although {agent} has read it before: "
                    f"{_why(consumer, conf, topics, topic)}, and all of it would be processed again",
                    hint=accept_command(topic),
                )
    except KafkaException as error:
        raise unreachable(error) from error
    finally:
        consumer.close()


def _why(consumer: Consumer, conf: Mapping[str, Any], topics: Topics, topic: str) -> str:
    """Say what has become of the offsets: the changelog of the agent's state tells which log they were of."""
    known = kept(consumer, topics, TP(topic, 0)).log
    now = logs_of(clients.admin(conf), [topic]).get(topic, UNKNOWN)
    if not known.may_be(now):
        return known.difference(now)
    return "the topic was recreated, or Kafka has forgotten them (a group without members, offsets.retention.minutes)"


def _is_forgotten(consumer: Consumer, topic: str, outputs: Sequence[str], partitions: int) -> bool:
    asked = [TopicPartition(topic, partition) for partition in range(partitions)]
    if any(tp.offset >= 0 for tp in _patiently(lambda: consumer.committed(asked, OFFSETS_TIMEOUT_S))):
        return False
    return _first(consumer, topic, partitions) and any(_first(consumer, output, partitions) for output in outputs)


def _patiently(ask: Callable[[], T]) -> T:
    """Ask until the cluster has decided."""
    return within(OFFSETS_TIMEOUT_S, kafka_says(UNDECIDED))(ask)


def _first(consumer: Consumer, topic: str, partitions: int) -> bool:
    """Say whether a topic holds a committed record; the ends alone cannot tell: aborted ones count in them."""
    starts = {}
    for partition in range(partitions):
        asked = TopicPartition(topic, partition)
        low, high = _patiently(lambda asked=asked: consumer.get_watermark_offsets(asked, OFFSETS_TIMEOUT_S))  # type: ignore[misc]
        if high > low:
            starts[partition] = low
    return bool(read_topic(consumer, topic, starts, 1))
