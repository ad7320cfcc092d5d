"""Which records of raw a time means, whether they are all there still, and whether raw is the topic that it was."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]

from pipeline.errors import FatalError
from pipeline.replay.plan import Gone, Replay, described, place, placed
from pipeline.replay.transaction import is_end, on_cluster, reader
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin
from pipeline.transport.logs import Log, logs_of

RANGE_TIMEOUT_S = 30.0
OTHERWISE = "headwater replay --source lake; or --partial for what is left"


def logs_now(settings: Settings, topics: Iterable[str]) -> dict[str, Log]:
    """Return the logs of topics as they are now."""
    with on_cluster():
        return logs_of(admin(settings.kafka.conf), topics)


def require_logs(settings: Settings, replay: Replay) -> None:
    """Raise FatalError when a topic that a replay has offsets of was recreated."""
    now = logs_now(settings, replay.logs) if replay.source == "raw" and replay.logs else {}
    for topic, text in replay.logs.items() if now else ():
        was, there = Log.parse(text), now.get(topic)
        if there is None or not was.may_be(there):
            what = "it is gone" if there is None else was.difference(there)
            raise FatalError(
                f"the replay {replay.id} has offsets of the topic {topic}, and {what}",
                hint="headwater replay --from TIME",
            )


def of_raw(settings: Settings, replay: Replay, topic: str, partitions: Iterable[int]) -> Replay:
    """Return a replay with its ranges of raw, and what is gone of them."""
    consumer = reader(settings, topic)
    ranges, gone = dict[str, list[int]](), dict[str, Gone]()
    try:
        with on_cluster():
            for partition in partitions:
                tp, name = TopicPartition(topic, partition), place(topic, partition)
                low, high = consumer.get_watermark_offsets(tp, RANGE_TIMEOUT_S)
                begin = low if replay.begin is None else _offset_at(consumer, topic, partition, replay.begin, high)
                end = _offset_at(consumer, topic, partition, replay.end, high)
                if max(low, begin) < end:
                    ranges[name] = [max(low, begin), end]
                if low > 0:
                    first = _first_time(consumer, topic, partition, low, high)
                    if not first or first >= (replay.begin or 0.0):
                        gone[name] = Gone(low, first)
    finally:
        consumer.close()
    if replay.begin is not None:
        age = _retention(settings, topic)
        if age is not None and replay.begin >= replay.at - age:  # what retention took is older than the range
            gone = {name: one for name, one in gone.items() if one.until}
    logs = {name: str(log) for name, log in logs_now(settings, [topic]).items()}
    return msgspec.structs.replace(replay, ranges=ranges, gone=gone, logs=logs)


def require_whole(replay: Replay) -> None:
    """Raise FatalError when the beginning of a range is gone. From the earliest on, nothing is asked for that is."""
    if replay.gone and replay.begin is not None:
        raise FatalError(f"the beginning of the range is no longer on raw: {described(replay.gone)}", hint=OTHERWISE)


def require_left(settings: Settings, replay: Replay, positions: Mapping[str, int]) -> None:
    """Raise FatalError when what a replay has still to read is gone."""
    left = {
        name: max(begin, positions.get(name, begin))
        for name, (begin, end) in replay.ranges.items()
        if positions.get(name, begin) < end
    }
    consumer, gone = reader(settings, replay.id), dict[str, Gone]()
    try:
        with on_cluster():
            for name, at in left.items():
                low, high = consumer.get_watermark_offsets(TopicPartition(*placed(name)), RANGE_TIMEOUT_S)
                if replay.ranges[name][1] > high:
                    raise FatalError(
                        f"the replay {replay.id} goes to offset {replay.ranges[name][1]} of {name.replace('|', '[')}], which "
                        f"ends at {high}: the topic was recreated, or it lost records",
                        hint="headwater replay --from TIME",
                    )
                if at < low:
                    gone[name] = Gone(low)
    finally:
        consumer.close()
    if gone:
        raise FatalError(
            f"what the replay {replay.id} has still to read is no longer on raw: {described(gone)}", hint=OTHERWISE
        )


def _offset_at(consumer: Consumer, topic: str, partition: int, at: float, high: int) -> int:
    (found,) = consumer.offsets_for_times([TopicPartition(topic, partition, int(at * 1000))], RANGE_TIMEOUT_S)
    return min(high, found.offset) if found.offset >= 0 else high


def _first_time(consumer: Consumer, topic: str, partition: int, low: int, high: int) -> float:
    """Return the time of the first record that is left; 0: none is."""
    deadline = time.monotonic() + RANGE_TIMEOUT_S
    consumer.assign([TopicPartition(topic, partition, low)])
    try:
        while low < high and time.monotonic() < deadline:
            if (message := consumer.poll(1.0)) is None:
                continue
            return 0.0 if is_end(message, topic) else message.timestamp()[1] / 1000
        return 0.0
    finally:
        consumer.unassign()


def _retention(settings: Settings, topic: str) -> float | None:
    """Return the age in seconds that records of a topic reach, where that alone deletes them; None: anything may."""
    resource = ConfigResource("topic", topic)
    try:
        found = admin(settings.kafka.conf).describe_configs([resource])[resource].result(RANGE_TIMEOUT_S)
    except KafkaException:
        return None
    age, size = (int(found[name].value) for name in ("retention.ms", "retention.bytes"))
    return age / 1000 if age > 0 and size < 0 else None
