"""The kinds of sources: which API reads which settings."""

from __future__ import annotations

from functools import partial

from pipeline.limits import MESSAGE_MAX
from pipeline.settings.sources import DynamoDBStreamSettings, KinesisSettings
from pipeline.sources.base import StreamApi
from pipeline.sources.dynamodb import streams as dynamodb
from pipeline.sources.dynamodb.streams import DynamoDBStreams
from pipeline.sources.kinesis import api as kinesis
from pipeline.sources.kinesis.api import KinesisStreams
from pipeline.sources.kinesis.fan_out import FanOutStreams
from pipeline.sources.snapshots.s3_export import Exports
from pipeline.sources.snapshots.scan import Scanner
from pipeline.sources.snapshots.snapshotter import Snapshotter


def stream_api(settings: DynamoDBStreamSettings | KinesisSettings, most: int = MESSAGE_MAX) -> StreamApi:
    """Return the API of a source; `most`: bytes of a record that it makes."""
    if isinstance(settings, KinesisSettings):
        return FanOutStreams(settings, most) if settings.read == "fan-out" else KinesisStreams(settings, most)
    return DynamoDBStreams(settings)


def onlooker(settings: DynamoDBStreamSettings | KinesisSettings) -> StreamApi:
    """Return an API that changes nothing: no consumer is registered for it."""
    return KinesisStreams(settings) if isinstance(settings, KinesisSettings) else DynamoDBStreams(settings)


def snapshotter(settings: DynamoDBStreamSettings | KinesisSettings) -> Snapshotter | None:
    """Return what takes snapshots of a source's tables; None: it cannot be joined with a stream that is out of order."""
    if isinstance(settings, KinesisSettings):
        return None
    scanner, exports = Scanner(settings.region, settings.threads), Exports(settings.region, settings.threads)
    return Snapshotter(scanner, exports, settings, partial(dynamodb.captures_table, settings))


def captures(settings: DynamoDBStreamSettings | KinesisSettings, table: str) -> bool:
    """Say whether a source may bring changes of a table; which tables deliver into a stream only AWS knows."""
    if isinstance(settings, KinesisSettings):
        return settings.codec == "dynamodb" or kinesis.captures_stream(settings, table)
    return dynamodb.captures_table(settings, table)
