"""Copies the messages of a replay's shadow topics to the live ones, each once, also when it is killed on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import msgspec
from confluent_kafka import TopicPartition

from pipeline.errors import UsageError
from pipeline.replay.plan import Replay, encode, of_suffix
from pipeline.replay.transaction import finish, group_metadata, is_end, on_cluster, produce, reader, transactional
from pipeline.settings.root import Settings
from pipeline.steps.route import REPLAY
from pipeline.topics.admin import admin, names_in
from pipeline.topics.names import Topics

PROMOTED_AT_ONCE = 5_000
PROMOTE_TIMEOUT_S = 30.0


def promote(settings: Settings, replay: Replay, on_progress: Callable[[int], None] = lambda _count: None) -> Replay:
    """Copy; return the replay as it is then. Messages keep key, value, partition and headers, and say `replay`."""
    if not replay.suffix:
        raise UsageError(f"the replay {replay.id} has written to the live topics itself", hint="headwater replay list")
    if replay.state not in {"done", "promoting"}:
        raise UsageError(
            f"the replay {replay.id} is {replay.state}",
            hint=f"headwater replay --resume {replay.id}" if replay.state != "promoted" else "headwater replay list",
        )
    topics = Topics(settings)
    name = f"{replay.group(settings.prefix)}.promote"
    producer, group = transactional(settings, name), group_metadata(settings, name)
    there = names_in(admin(settings.kafka.conf))
    dead = replay.topic(topics.dead_letter)
    shadows = [topic for topic in of_suffix(there, settings.prefix, replay.suffix) if topic != dead]
    consumer = reader(settings, name)
    copied = 0
    try:
        with on_cluster():
            places = [TopicPartition(topic, partition) for topic in shadows for partition in there[topic].partitions]
            at = consumer.committed(places, PROMOTE_TIMEOUT_S) if places else []
            consumer.assign([TopicPartition(tp.topic, tp.partition, max(0, tp.offset)) for tp in at])
            left = {(tp.topic, tp.partition) for tp in at}
            while True:
                producer.begin_transaction()
                offsets: dict[tuple[str, int], int] = {}
                for message in consumer.consume(PROMOTED_AT_ONCE, 0.5) if left else []:
                    tp = cast("str", message.topic()), cast("int", message.partition())
                    if is_end(message, tp[0]):
                        left.discard(tp)
                        continue
                    headers = cast("list[tuple[str, bytes]]", message.headers() or [])
                    live = tp[0].removesuffix(f".{replay.suffix}")
                    told = [*headers, (REPLAY, replay.id.encode())]
                    produce(producer, live, message.key(), message.value(), tp[1], told)
                    offsets[tp] = cast("int", message.offset()) + 1
                    copied += 1
                replay = msgspec.structs.replace(replay, state="promoting" if left else "promoted")
                produce(producer, topics.replays, replay.id.encode(), encode(replay), 0, [])
                finish(producer, [TopicPartition(*tp, offset) for tp, offset in offsets.items()], group)
                on_progress(copied)
                if not left:
                    return replay
    finally:
        consumer.close()
