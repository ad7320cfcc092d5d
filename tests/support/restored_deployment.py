"""Puts back what a deployment of the version before has left (`earlier_deployment`): topics, offsets, state and lake."""

from __future__ import annotations

import gzip
import json
import tarfile
import time
from base64 import b64decode
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic
from support.earlier_deployment import FIXTURES
from support.waiting import until

Record = dict[str, Any]


def topics_of(variant: str) -> dict[str, Any]:
    """Return what was in the topics: by name their settings and the records of each partition."""
    found: dict[str, Any] = json.loads(gzip.decompress((FIXTURES / variant / "topics.json.gz").read_bytes()))
    return found


def offsets_of(variant: str) -> dict[str, dict[str, dict[str, int]]]:
    """Return what the groups had committed: by group, topic and partition."""
    found: dict[str, dict[str, dict[str, int]]] = json.loads((FIXTURES / variant / "offsets.json").read_text())
    return found


def restore(conf: dict[str, Any], variant: str, state: Path, lake: Path) -> None:
    """Put all of it back: a record has the offset that it had, and the ends are the same.

    All times are later by one amount, so that the newest is now: or else retention takes the records in a few days.
    """
    client, topics, offsets = admin(conf), topics_of(variant), offsets_of(variant)
    records = [one for topic in topics.values() for partition in topic["partitions"] for one in partition["records"]]
    later = int(time.time() * 1000) - max(record["timestamp"] for record in records)
    for record in records:
        record["timestamp"] += later
    forget(client, list(topics), list(offsets))
    wanted = [Topic(name, len(topic["partitions"]), "of before", topic["config"]) for name, topic in topics.items()]
    until(lambda: made(client, wanted), "the topics")
    writer = Writer(conf, variant)
    for name, topic in topics.items():
        for number, partition in enumerate(topic["partitions"]):
            writer.fill(name, number, partition["records"], partition["end"])
    for group, by_topic in offsets.items():
        tps = [TopicPartition(name, int(p), at) for name, parts in by_topic.items() for p, at in parts.items()]
        (future,) = client.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, tps)]).values()
        assert all(
            topic_partition.error is None and not topic_partition.metadata
            for topic_partition in future.result(20).topic_partitions
        )
    for archive, directory in (("state", state), ("lake", lake)):
        with tarfile.open(FIXTURES / variant / f"{archive}.tar.gz") as tar:
            tar.extractall(directory, filter="data")


def forget(client: AdminClient, topics: list[str], groups: list[str]) -> None:
    """Delete the topics and groups of an earlier run on the same broker."""
    there = client.list_topics(timeout=10).topics
    known = {one.group_id for one in client.list_consumer_groups(request_timeout=20).result(20).valid}
    if old := [name for name in topics if name in there]:
        wait(client.delete_topics(old))
    if left := [group for group in groups if group in known]:
        wait(client.delete_consumer_groups(left))


def wait(asked: Mapping[str, Future[None]]) -> None:
    """Wait until all is done."""
    for future in asked.values():
        future.result(20)


def made(client: Any, wanted: Sequence[Topic]) -> bool:
    """Say whether the topics could be made: not before the broker has forgotten those that were deleted."""
    there = client.list_topics(timeout=10).topics
    return not any(topic.name in there for topic in wanted) and len(ensure(client, wanted, 1)) == len(wanted)


class Writer:
    """Writes records so that each has the offset that it had."""

    def __init__(self, conf: dict[str, Any], name: str) -> None:
        self._conf = conf
        self._plain = Producer(conf)
        self._transactional = Producer({**conf, "transactional.id": f"restores-{name}"})
        self._transactional.init_transactions(30)

    def fill(self, topic: str, partition: int, records: Sequence[Record], end: int) -> None:
        """Fill a partition.

        The offset after a run of records is that of a marker: the run was a transaction. What is missing beyond was
        aborted: some records and a marker. A run that ends where the partition ends was no transaction.
        """
        at = 0
        runs = runs_of(records)
        for number, run in enumerate(runs):
            self._abort(topic, partition, run[0]["offset"] - at)
            at = runs[number + 1][0]["offset"] if number + 1 < len(runs) else end
            hole = at - run[-1]["offset"] - 1
            is_transaction = hole == 1 or hole > 2
            self._write(topic, partition, run, in_transaction=is_transaction)
            self._abort(topic, partition, hole - is_transaction)
        if not runs:
            self._abort(topic, partition, end)
        self._check(topic, partition, records, end)

    def _write(self, topic: str, partition: int, run: Sequence[Record], *, in_transaction: bool) -> None:
        producer = self._transactional if in_transaction else self._plain
        if in_transaction:
            producer.begin_transaction()
        for one in run:
            headers: list[tuple[str, str | bytes | None]] = [(name, data(value)) for name, value in one["headers"]]
            value, key = data(one["value"]), data(one["key"])
            producer.produce(topic, value, key, partition, timestamp=one["timestamp"], headers=headers)
        assert producer.flush(20) == 0
        if in_transaction:
            producer.commit_transaction(20)

    def _abort(self, topic: str, partition: int, count: int) -> None:
        """Use up offsets: all but one with records that are aborted, the last one with the marker."""
        if count == 0:
            return
        assert count > 1, "one offset alone cannot be aborted"
        self._transactional.begin_transaction()
        for _ in range(count - 1):
            self._transactional.produce(topic, b"aborted", b"aborted", partition)
        assert self._transactional.flush(20) == 0
        self._transactional.abort_transaction(20)

    def _check(self, topic: str, partition: int, records: Sequence[Record], end: int) -> None:
        reader = Consumer({**self._conf, "group.id": "restores", "enable.auto.commit": False})
        tp = TopicPartition(topic, partition, 0)
        until(lambda: reader.get_watermark_offsets(tp) == (0, end), f"{topic}[{partition}]: the end {end}")
        reader.assign([tp])
        for record in records:
            message = reader.poll(20)
            assert message is not None
            assert (message.offset(), message.key(), message.value()) == (
                record["offset"],
                data(record["key"]),
                data(record["value"]),
            )
        reader.close()


def runs_of(records: Sequence[Record]) -> list[list[Record]]:
    """Return records in runs of offsets that follow each other."""
    runs: list[list[Record]] = []
    for record in records:
        if runs and runs[-1][-1]["offset"] + 1 == record["offset"]:
            runs[-1].append(record)
        else:
            runs.append([record])
    return runs


def data(text: str | None) -> bytes | None:
    """Return what the text of the fixture stands for."""
    return None if text is None else b64decode(text)
