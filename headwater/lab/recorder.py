"""What a topic holds, and how far a group is: for proofs and tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Self, cast

from confluent_kafka import Consumer, Message, TopicPartition

from pipeline.errors import FatalError
from pipeline.transport import Follower


class Recorder:
    """Keeps what a topic holds, as committed, while it grows."""

    def __init__(self, conf: dict[str, Any], topic: str) -> None:
        self.records: dict[int, list[Message]] = {}
        self._follower = Follower(conf, topic, self._apply)

    def __enter__(self) -> Self:
        self._follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.stop()

    def __len__(self) -> int:
        return sum(len(records) for records in list(self.records.values()))

    def __iter__(self) -> Iterator[Message]:
        for partition in sorted(self.records):
            yield from self.records[partition]

    def _apply(self, records: list[Message]) -> None:
        for record in records:
            self.records.setdefault(cast("int", record.partition()), []).append(record)

    @property
    def reached(self) -> dict[int, int]:
        """The offset up to which each partition has been read; ends of transactions count."""
        return dict(self._follower.reached)

    def is_at_end(self, conf: dict[str, Any]) -> bool:
        """Say whether all that was produced by now has been read.

        Offsets of a transaction can be seen before its records can, so that the end is the one of uncommitted readers.
        """
        consumer = Consumer({**conf, "group.id": "recorder", "isolation.level": "read_uncommitted"})
        try:
            ends = {
                p: consumer.get_watermark_offsets(TopicPartition(self._follower.topic, p), 30)[1]
                for p in consumer.list_topics(self._follower.topic, 30).topics[self._follower.topic].partitions
            }
        finally:
            consumer.close()
        return all(self.reached.get(partition, 0) >= end for partition, end in ends.items())

    def wait_for_end(self, conf: dict[str, Any], seconds: float) -> None:
        """Return when all that was produced by now has been read; raise FatalError when that takes longer."""
        deadline = time.monotonic() + seconds
        while not self.is_at_end(conf):
            if time.monotonic() > deadline:
                raise FatalError(f"the topic {self._follower.topic} could not be read in {seconds:.0f} s")
            time.sleep(0.1)

    @property
    def ends(self) -> dict[int, int]:
        """The offset after the last record, by partition."""
        return {p: cast("int", records[-1].offset()) + 1 for p, records in list(self.records.items()) if records}


def lag(conf: dict[str, Any], group: str, ends: dict[str, dict[int, int]]) -> int:
    """Return how many offsets a group is behind the given ends."""
    consumer = Consumer({**conf, "group.id": group, "isolation.level": "read_committed", "enable.auto.commit": False})
    try:
        wanted = [TopicPartition(topic, p) for topic, partitions in ends.items() for p in partitions]
        committed = {(tp.topic, tp.partition): tp.offset for tp in consumer.committed(wanted, 30)} if wanted else {}
    finally:
        consumer.close()
    return sum(
        max(0, end - max(0, committed[topic, p])) for topic, partitions in ends.items() for p, end in partitions.items()
    )
