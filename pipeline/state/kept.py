"""What the changelog of a state knows of the topic that it is made of: which log that was, and how far it was read."""

from __future__ import annotations

from typing import NamedTuple

from confluent_kafka import Consumer, Message, TopicPartition
from faust.types import TP

from pipeline.state.seen import source_log, source_offset
from pipeline.state.table_partitions import positions_in
from pipeline.topics.names import Topics
from pipeline.topics.read import read_topic
from pipeline.transport.logs import UNKNOWN, Log

OFFSETS_TIMEOUT_S = 20.0
LAST = 100
"""Offsets at a changelog's end among which its last message is looked for first."""


class Kept(NamedTuple):
    """What the state of an agent knows of a partition that it reads."""

    log: Log = UNKNOWN
    """The log that it is of, as far as it is known."""
    offset: int | None = None
    """The offset up to which it was read, if it is known exactly."""


def kept(consumer: Consumer, topics: Topics, tp: TP) -> Kept:
    """Return what the changelog of the agent's state says of a partition of its topic. Blocks.

    The seen table's tells exactly how far ingest was read; that of the flows at least which log raw was.
    """
    changelog = {topics.ingest: topics.seen, topics.raw: topics.flow_state}.get(tp.topic)
    last = None if changelog is None else _last(consumer, TP(changelog, tp.partition))
    if last is None:
        return Kept()
    if tp.topic == topics.ingest:
        return Kept(source_log(last), source_offset(last))
    logs = [one.log for one in positions_in(last) if TP(one.topic, one.partition) == tp]
    return Kept(Log.parse(logs[0])) if logs else Kept()


def _last(consumer: Consumer, tp: TP) -> Message | None:
    low, end = consumer.get_watermark_offsets(TopicPartition(*tp), OFFSETS_TIMEOUT_S)
    for first in (max(low, end - LAST), low):  # ends of transactions take offsets, too
        if records := read_topic(consumer, tp.topic, {tp.partition: first}, None):
            return records[-1]
    return None
