"""Reads the records of a replay: from the raw topic, or from the lake's files when Kafka no longer has them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.errors import FatalError
from pipeline.replay.plan import Replay, place, placed
from pipeline.transport import clients

READ_AT_ONCE = 5_000
"""Records read at once."""
POLL = 0.2
REPLAY_SILENCE_S = 60.0
"""Seconds without a record before the end of a range after which that is an error."""


class ReplayRecord(NamedTuple):
    """One record of a range."""

    offset: int
    key: bytes | None
    value: bytes
    at: float
    """When it was written to raw, in seconds since the epoch."""


class ReplayBatch(NamedTuple):
    """Records of one partition, in order."""

    topic: str
    partition: int
    records: Sequence[ReplayRecord]
    position: int
    """The offset to continue from when these are done."""


class ReplaySource(Protocol):
    """Gives the records of a replay."""

    def batches(self) -> list[ReplayBatch]:
        """Return some of the records that come next; none when there are none just now."""

    @property
    def done(self) -> bool:
        """Whether every range has been read."""

    def close(self) -> None:
        """Give everything back."""


class RawSource:
    """The raw topic."""

    def __init__(
        self, conf: Mapping[str, Any], replay: Replay, positions: Mapping[str, int], clock: Callable[[], float]
    ) -> None:
        """`positions`: how far ranges were read before, by their names."""
        self._ends = {name: end for name, (begin, end) in replay.ranges.items() if positions.get(name, begin) < end}
        self._clock, self._heard = clock, clock()
        self._most = max(2, min(READ_AT_ONCE, int(replay.rate / 2))) if replay.rate else READ_AT_ONCE
        self._consumer = clients.consumer(
            conf,
            replay.id,
            enable_partition_eof=True,
            queued_max_messages_kbytes=65_536,
            fetch_queue_backoff_ms=20,  # the default is a second after every full queue
        )
        if self._ends:
            self._consumer.assign(
                [TopicPartition(*placed(name), positions.get(name, replay.ranges[name][0])) for name in self._ends]
            )

    @property
    def done(self) -> bool:
        """Whether every range has been read."""
        return not self._ends

    @property
    def consumer(self) -> Consumer:
        """The consumer: its group metadata goes with the offsets."""
        return self._consumer

    def batches(self) -> list[ReplayBatch]:
        """Return what the broker has for us."""
        found: dict[str, list[ReplayRecord]] = {}
        ended: dict[str, int] = {}
        last: list[ReplayRecord] = []
        last_place: tuple[str | None, int | None] = None, None
        end = 0
        first = self._consumer.poll(POLL)  # `consume` with a time waits for all that it may have
        for message in [first, *self._consumer.consume(self._most - 1, 0)] if first is not None else []:
            place_of = message.topic(), message.partition()
            offset = cast("int", message.offset())
            if place_of != last_place:  # records of a partition come one after the other
                name, last_place = place(cast("str", place_of[0]), cast("int", place_of[1])), place_of
                last, end = found.setdefault(name, []), self._ends.get(name, -1)
            if (error := message.error()) is None and offset < end:
                last.append(ReplayRecord(offset, message.key(), message.value() or b"", message.timestamp()[1] / 1000))
            elif error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - the documented name
                raise FatalError(
                    f"reading {name}: {error.str()}", hint="are the records still there? headwater replay --source lake"
                ) from KafkaException(error)
            elif name in self._ends and offset >= end:
                ended[name], end = self._ends.pop(name), -1
                self._consumer.incremental_unassign([TopicPartition(*placed(name))])
        found = {name: records for name, records in found.items() if records}
        now = self._clock()
        if found or ended or not self._ends:
            self._heard = now
        elif now - self._heard > REPLAY_SILENCE_S:
            raise FatalError(
                f"nothing has arrived from {', '.join(self._ends)} for {REPLAY_SILENCE_S:.0f} s", hint="headwater check"
            )
        batches = []
        for name in {**found, **ended}:
            records = found.get(name, [])
            batches.append(ReplayBatch(*placed(name), records, ended.get(name) or records[-1].offset + 1))
        return batches

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


class LakeSource:
    """Files of the lake in the layout `envelope`, of one or more sinks: what they hold of changes is what raw held."""

    def __init__(
        self,
        read: Callable[[str], bytes],
        files: Mapping[str, Sequence[str]],
        replay: Replay,
        positions: Mapping[str, int],
    ) -> None:
        """`files`: by range, the paths in the order of their records."""
        self._read, self._replay, self._positions = read, replay, positions
        self._left: list[tuple[str, str, bool]] = [
            (name, path, path == paths[-1]) for name, paths in files.items() for path in paths
        ]

    @property
    def done(self) -> bool:
        """Whether every file has been read."""
        return not self._left

    def batches(self) -> list[ReplayBatch]:
        """Return the changes of the next file."""
        if not self._left:
            return []
        name, path, last = self._left.pop(0)
        start, (_, end) = self._positions.get(name, 0), self._replay.ranges[name]
        records = [row for row in _rows(self._read(path), self._replay) if row.offset >= start]
        topic, partition = placed(name)
        position = end if last else (records[-1].offset + 1 if records else start)
        return [ReplayBatch(topic, partition, records, position)]

    def close(self) -> None:
        """Nothing is open."""


def _rows(content: bytes, replay: Replay) -> Iterator[ReplayRecord]:
    """Yield the changes of a file, as they were on raw."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    begin = (replay.begin or 0) * 1_000_000
    for batch in pq.ParquetFile(io.BytesIO(content)).iter_batches(READ_AT_ONCE):
        for row in batch.to_pylist():
            ts_us = int(row["changed_at"].timestamp() * 1_000_000)
            if begin <= ts_us < replay.end * 1_000_000:
                yield ReplayRecord(row["offset"], row["key"].encode(), _value(row, ts_us), ts_us / 1_000_000)


NAMES = {"c": "INSERT", "u": "MODIFY", "d": "REMOVE", "r": "READ"}
SOURCES = {"dynamodb-stream": "aws:dynamodb", "kinesis": "aws:kinesis"}


def _value(row: Mapping[str, Any], ts_us: int) -> bytes:
    """Return the record that a row was made of, images untouched."""
    raw = msgspec.Raw
    body: dict[str, Any] = {
        "ApproximateCreationDateTime": ts_us,
        "ApproximateCreationDateTimePrecision": "MICROSECOND",
        "Keys": raw(row["key"].encode()),
        "SequenceNumber": row["sequence"],
    }
    for name, column in (("NewImage", "after"), ("OldImage", "before")):
        if row[column] is not None:
            body[name] = raw(row[column].encode())
    source = row["source"]
    event: dict[str, Any] = {
        "eventID": row["event_id"],
        "eventName": NAMES[row["op"]],
        "eventSource": SOURCES.get(source, source),
        "tableName": row["table"],
        "dynamodb": body,
    }
    if source == "kinesis":
        event["recordFormat"] = "application/json"
    return msgspec.json.encode(event)
