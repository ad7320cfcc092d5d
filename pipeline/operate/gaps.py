"""Gaps: which changes are known to be lost, and whether a snapshot has repaired that."""

from __future__ import annotations

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer

from models.gap import Gap
from pipeline.settings.root import Settings
from pipeline.sources.shard_positions import KnownPositions
from pipeline.sources.snapshots.known import Snapshots, is_snapshot, repaired
from pipeline.topics.admin import admin, look
from pipeline.topics.names import Topics
from pipeline.topics.read import read_topic, reading


def gaps(settings: Settings) -> list[tuple[Gap, bool]]:
    """Return all gaps, in the order in which they were noticed, and whether each is repaired.

    Raises FatalError when the cluster cannot be reached.
    """
    topics = Topics(settings)
    there = {found.wanted.name: found.partitions for found in look(admin(settings.kafka.conf), topics.all())}
    with reading(settings) as consumer:
        known, snapshots = _known(consumer, topics.shards, there[topics.shards])
        found = _gaps(consumer, topics.gaps, there[topics.gaps])
    return [(gap, _is_repaired(gap, topics, known, snapshots)) for gap in found]


def tables_of(gap: Gap, settings: Settings) -> list[str]:
    """Return the tables whose snapshots repair a gap: of a topic on the way to raw, all that were ever captured."""
    topics = Topics(settings)
    there = {found.wanted.name: found.partitions for found in look(admin(settings.kafka.conf), topics.all())}
    with reading(settings) as consumer:
        known, _ = _known(consumer, topics.shards, there[topics.shards])
    return sorted(_tables_of(gap, topics, known))


def _tables_of(gap: Gap, topics: Topics, known: KnownPositions) -> set[str]:
    if gap.table:
        return {gap.table}
    return known.tables() if gap.topic in {topics.ingest, topics.raw} else set()


def _is_repaired(gap: Gap, topics: Topics, known: KnownPositions, snapshots: Snapshots) -> bool:
    return repaired(gap, snapshots.all.values(), _tables_of(gap, topics, known))


def _known(consumer: Consumer, topic: str, partitions: int) -> tuple[KnownPositions, Snapshots]:
    known, snapshots = KnownPositions({}, {}), Snapshots()
    for record in read_topic(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING), None):
        key = bytes(record.key() or b"")
        stream, _, shard_id = key.decode().rpartition("/")
        if is_snapshot(stream):
            snapshots.take(stream, shard_id, record.value())
        else:
            known.take(key, record.value())
    return known, snapshots


def _gaps(consumer: Consumer, topic: str, partitions: int) -> list[Gap]:
    records = read_topic(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING), None)
    return [msgspec.json.decode(record.value() or b"", type=Gap) for record in records]
