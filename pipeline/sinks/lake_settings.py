"""The lakes of the settings, and what Kafka says of what they should hold: for the commands, which run beside the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]
from faust.types import TP

from pipeline.errors import UsageError
from pipeline.settings import Lake, Settings, group_of
from pipeline.sinks.lake_verify import Carried, Lost
from pipeline.sources.places import Gap
from pipeline.status import read
from pipeline.topics import Topics, admin, unreachable
from pipeline.transport import clients
from pipeline.transport.committed import committed
from pipeline.transport.logs import logs_of

EARLIEST = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
TIMEOUT = 20.0
_decode = msgspec.json.Decoder(Gap).decode


class Chosen(NamedTuple):
    """A lake of files of the settings."""

    url: str
    group: str
    """The consumer group of its workers."""
    sinks: Mapping[str, str]
    """Their topics, by name."""


def lake_of(settings: Settings, name: str = "") -> Lake:
    """Return the settings of the lake of this name, of [lake] without one; raise UsageError where there is none."""
    if not name:
        return settings.lake
    for lake in settings.lakes:
        if lake.name == name:
            return lake
    known = ", ".join(lake.name for lake in settings.lakes)
    raise UsageError(f"there is no lake {name!r}", hint=f"one of {known or 'none'}; headwater check")


def choose(settings: Settings, name: str = "") -> Chosen:
    """Return the lake of this name, [lake] or the only one of [[lakes]] without one; raise UsageError where there is none."""
    named = {lake.name: lake for lake in settings.lakes}
    if name:
        if name not in named:
            raise UsageError(f"there is no lake {name!r}", hint=f"one of {', '.join(named) or 'none'}; headwater check")
        return _chosen(settings, named[name], group_of(settings.prefix, "lake", name))
    if settings.lake.url is not None:
        return _chosen(settings, settings.lake, settings.prefix)
    files = [lake for lake in settings.lakes if lake.table == "parquet" and lake.url is not None]
    if len(files) == 1:
        return _chosen(settings, files[0], group_of(settings.prefix, "lake", files[0].name))
    if files:
        raise UsageError(f"which lake: {', '.join(lake.name for lake in files)}?", hint="--lake NAME")
    raise UsageError("there is no lake in the settings", hint="headwater lake verify --url s3://bucket/prefix")


def _chosen(settings: Settings, lake: Lake, group: str) -> Chosen:
    if lake.url is None or lake.table != "parquet":
        raise UsageError("this lake is Iceberg tables: there are no files to check", hint='table = "parquet"')
    return Chosen(lake.url, group, Topics(settings).sinks_of(lake))


def carried(settings: Settings, lake: Chosen) -> list[Carried]:
    """Return what Kafka says of the partitions of a lake's sink topics; raise FatalError when it does not answer."""
    client = admin(settings.kafka.conf)
    try:
        logs = logs_of(client, lake.sinks.values())
        tps = [TP(topic, partition) for topic in logs for partition in range(settings.partitions)]
        known = committed(client, lake.group, tps)
        asked = (
            client.list_offsets({TopicPartition(*tp): EARLIEST for tp in tps}, request_timeout=TIMEOUT) if tps else {}
        )
        low = {(str(tp.topic), tp.partition): future.result(TIMEOUT).offset for tp, future in asked.items()}
    except KafkaException as error:
        raise unreachable(error) from error
    return [Carried(*tp, logs[tp.topic], max(0, low[tp]), known[tp]) for tp in tps]


def lost(settings: Settings) -> list[Lost]:
    """Return what Kafka has deleted before it was read, as the gaps topic has it."""
    topic = Topics(settings).gaps
    consumer = clients.consumer(settings.kafka.conf, f"{settings.prefix}.lake-verify", enable_partition_eof=True)
    try:
        partitions = consumer.list_topics(timeout=TIMEOUT).topics
        if topic not in partitions:
            return []
        records = read(consumer, topic, dict.fromkeys(partitions[topic].partitions, OFFSET_BEGINNING), None)
    except KafkaException as error:
        raise unreachable(error) from error
    finally:
        consumer.close()
    gaps = [_decode(record.value() or b"") for record in records if record.value()]
    return [Lost(gap.topic, gap.partition, gap.first, gap.last, gap.log) for gap in gaps if gap.cause == "retention"]
