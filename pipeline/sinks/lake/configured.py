"""The lakes of the settings, and what Kafka says of what they should hold: for the commands, which run beside the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]
from faust.types import TP

from models.gap import Gap
from pipeline.errors import UsageError
from pipeline.settings.root import Settings
from pipeline.settings.sinks import LakeSettings, group_of
from pipeline.sinks.lake.verify import Carried, LostOffsets
from pipeline.topics.admin import admin, unreachable
from pipeline.topics.names import Topics
from pipeline.topics.read import read_topic
from pipeline.transport import clients
from pipeline.transport.committed import committed
from pipeline.transport.logs import logs_of

EARLIEST = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
LAKES_TIMEOUT_S = 20.0
UNNAMED = "lake"
"""The name of [lake]."""
_decode = msgspec.json.Decoder(Gap).decode


class Chosen(NamedTuple):
    """A lake of the settings."""

    url: str
    group: str
    """The consumer group of its workers."""
    sinks: Mapping[str, str]
    """Their topics, by name."""
    name: str = ""
    """As in [[lakes]]; that of [lake] is `lake`."""
    settings: LakeSettings | None = None

    @property
    def is_files(self) -> bool:
        """Whether it is Parquet files, and no tables."""
        return self.settings is None or self.settings.table == "parquet"


def choose(settings: Settings, name: str = "") -> Chosen:
    """Return the lake of files of this name; [lake] or the only one of [[lakes]] without one.

    Raises UsageError where there is none.
    """
    if name or settings.lake.url is not None:
        found = choose_all(settings, name or UNNAMED)[0]
        if not found.is_files:
            raise UsageError("this lake has Iceberg tables, so there are no files to verify", hint='table = "parquet"')
        return found
    lakes = choose_all(settings)
    files = [lake for lake in lakes if lake.is_files] or lakes
    if len(files) > 1:
        raise UsageError(f"which lake: {', '.join(lake.name for lake in files)}?", hint="--lake NAME")
    return choose(settings, files[0].name)


def choose_all(settings: Settings, name: str = "", url: str = "") -> list[Chosen]:
    """Return [lake] and all of [[lakes]], files and tables; or those of this name, or at this URL.

    Raises UsageError where there is none.
    """
    lakes: list[tuple[str, LakeSettings, str]] = (
        [(UNNAMED, settings.lake, settings.prefix)] if settings.lake.url else []
    )
    lakes += [(lake.name, lake, group_of(settings.prefix, "lake", lake.name)) for lake in settings.lakes]
    names = [known for known, *_ in lakes]
    if name and name not in names:
        raise UsageError(f"there is no lake {name!r}", hint=f"one of {', '.join(names) or 'none'}; headwater check")
    found = [
        Chosen(lake.url, group, Topics(settings).sinks_of(lake), known, lake)
        for known, lake, group in lakes
        if lake.url is not None and name in {"", known} and url.rstrip("/") in {"", lake.url.rstrip("/")}
    ]
    if not found:
        raise UsageError("there is no lake in the settings", hint="headwater lake verify --url s3://bucket/prefix")
    return found


def carried(settings: Settings, lake: Chosen) -> list[Carried]:
    """Return what Kafka says of the partitions of a lake's sink topics; raise FatalError when it does not answer."""
    client = admin(settings.kafka.conf)
    try:
        logs = logs_of(client, lake.sinks.values())
        tps = [TP(topic, partition) for topic in logs for partition in range(settings.partitions)]
        known = committed(client, lake.group, tps)
        asked = (
            client.list_offsets({TopicPartition(*tp): EARLIEST for tp in tps}, request_timeout=LAKES_TIMEOUT_S)
            if tps
            else {}
        )
        low = {(str(tp.topic), tp.partition): future.result(LAKES_TIMEOUT_S).offset for tp, future in asked.items()}
    except KafkaException as error:
        raise unreachable(error) from error
    return [Carried(*tp, logs[tp.topic], max(0, low[tp]), known[tp]) for tp in tps]


def lost(settings: Settings) -> list[LostOffsets]:
    """Return what Kafka has deleted before it was read, as the gaps topic has it."""
    topic = Topics(settings).gaps
    consumer = clients.consumer(settings.kafka.conf, f"{settings.prefix}.lake-verify", enable_partition_eof=True)
    try:
        partitions = consumer.list_topics(timeout=LAKES_TIMEOUT_S).topics
        if topic not in partitions:
            return []
        records = read_topic(consumer, topic, dict.fromkeys(partitions[topic].partitions, OFFSET_BEGINNING), None)
    except KafkaException as error:
        raise unreachable(error) from error
    finally:
        consumer.close()
    gaps = [_decode(record.value() or b"") for record in records if record.value()]
    return [
        LostOffsets(gap.topic, gap.partition, gap.first, gap.last, gap.log) for gap in gaps if gap.cause == "retention"
    ]
