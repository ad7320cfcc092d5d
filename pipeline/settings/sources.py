"""The settings of the sources: `[[sources]]`, by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AwareDatetime,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from pipeline.settings.base import Section, formed

PATTERN = formed(r"[A-Za-z0-9._*?-]+", "a name, or a pattern of names with * and ?")
StreamName = Annotated[str, Field(max_length=128), PATTERN]
TableName = Annotated[str, Field(max_length=255), PATTERN]
CONSUMER = formed(
    r"[A-Za-z0-9._-]{1,128}|arn:[a-z-]+:kinesis:[^/]+:stream/[A-Za-z0-9._-]+/consumer/[A-Za-z0-9._-]+:[0-9]+",
    "a name of letters, digits, . _ - or the ARN of a consumer",
)


S3_URL = r"^s3://[a-z0-9.-]+(/.*)?$"


class DynamoDBStreamSettings(Section):
    """Changes of DynamoDB tables, read from their streams."""

    kind: Literal["dynamodb-stream"] = Field("dynamodb-stream", description="The kind of the source.")
    tables: tuple[TableName, ...] = Field(
        (), description="Names of the tables, or patterns: * for any characters, ? for one."
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Tags: each table that carries all of them.")
    start: Literal["trim_horizon", "latest"] | AwareDatetime = Field(
        "trim_horizon",
        description="Where a stream begins when it is first found: with all it holds (24 h), with new changes, or at a time.",
    )
    region: str | None = Field(None, description="AWS Region; without it, boto3's default.")
    discovery_interval: float = Field(
        60.0, ge=0.1, description="Seconds between two searches for new shards and streams."
    )
    poll_interval: float = Field(
        0.25,
        ge=0.01,
        description="Seconds until a shard that had few records is read again; an idle one waits longer and longer.",
    )
    idle_calls: float = Field(15.0, gt=0, description="Most GetRecords calls a second of all idle shards of a worker.")
    threads: int = Field(8, ge=1, le=64, description="GetRecords calls at the same time in a worker.")
    snapshot: Literal["none", "initial"] = Field(
        "none", description="initial: each table is scanned once, when its capture has begun; see headwater snapshot."
    )
    snapshot_share: float = Field(0.25, gt=0, le=1, description="Share of a table's read units that a snapshot takes.")
    snapshot_units: float | None = Field(
        None, gt=0, description="Read units a second that a snapshot takes, instead of a share."
    )
    snapshot_export: Annotated[str, formed(S3_URL, "s3://bucket/prefix")] | None = Field(
        None,
        description="s3://bucket/prefix: snapshots read an export of the table to there instead of scanning it.",
    )
    snapshot_settle: float = Field(
        2.0,
        ge=0,
        le=3600,
        description="Seconds after which a change that a scan has read is in the stream for certain; with too few, an item "
        "may be older for a moment, never forever.",
    )

    @model_validator(mode="after")
    def _something_to_capture(self) -> DynamoDBStreamSettings:
        if not self.tables and not self.tags:
            raise ValueError("name tables, or tags that tables carry")
        return self


class KinesisSettings(Section):
    """Changes, or records of applications, read from Kinesis Data Streams."""

    kind: Literal["kinesis"] = Field(description="The kind of the source.")
    streams: tuple[StreamName, ...] = Field(
        min_length=1, description="Names of the streams, or patterns: * for any characters, ? for one."
    )
    codec: Literal["dynamodb", "json", "bytes"] = Field(
        "dynamodb",
        description="What the records are: what DynamoDB delivers into a stream, JSON objects of applications, or anything.",
    )
    event_id_field: str | None = Field(
        None,
        min_length=1,
        description="With codec json: the field that is the event ID; without it, the record's place in its shard.",
    )
    resequence: float = Field(
        0.0,
        ge=0,
        le=300,
        description="Seconds for which every change is held back, so that one which DynamoDB delivers later than a newer one "
        "of its item is put before it; 0: nothing waits, and such a change is marked late.",
    )
    read: Literal["polling", "fan-out"] = Field(
        "polling",
        description="polling: all readers of a shard share its 2 MiB a second. fan-out: AWS pushes, 2 MiB a second and shard "
        "for this consumer alone, at a price.",
    )
    consumer: Annotated[str, CONSUMER] = Field(
        "headwater",
        max_length=2048,
        description="With fan-out: the name of the registered consumer, or its ARN; a name that is missing is registered. "
        "Each deployment needs its own.",
    )
    start: Literal["trim_horizon", "latest"] | AwareDatetime = Field(
        "trim_horizon",
        description="Where a stream begins when it is first found: with all it holds, with new records, or at a time.",
    )
    start_after: dict[str, str] = Field(
        default_factory=dict,
        description="By shard ID, the sequence number of the last record that another reader has read, for a stream that is "
        "first found: those shards begin behind it, their parents are not read, the others begin as `start` says.",
    )
    region: str | None = Field(None, description="AWS Region; without it, boto3's default.")
    discovery_interval: float = Field(
        60.0, ge=0.1, description="Seconds between two searches for new shards and streams."
    )
    poll_interval: float = Field(
        0.25,
        ge=0.01,
        description="Seconds until a shard that had few records is read again; Kinesis takes 5 calls a second and shard.",
    )
    idle_calls: float = Field(15.0, gt=0, description="Most GetRecords calls a second of all idle shards of a worker.")
    threads: int = Field(8, ge=1, le=64, description="GetRecords calls at the same time in a worker.")

    @model_validator(mode="after")
    def _an_event_id_needs_fields(self) -> KinesisSettings:
        if self.event_id_field is not None and self.codec != "json":
            raise ValueError('event_id_field: only records of codec = "json" have fields to take')
        return self

    @model_validator(mode="after")
    def _only_dynamodb_is_out_of_order(self) -> KinesisSettings:
        if self.resequence and self.codec != "dynamodb":
            raise ValueError('resequence: only what DynamoDB delivers (codec = "dynamodb") says when it happened')
        return self

    @model_validator(mode="after")
    def _a_consumer_has_one_stream(self) -> KinesisSettings:
        if ":" in self.consumer and self.streams != (self.consumer.partition(":stream/")[2].partition("/")[0],):
            raise ValueError("consumer: an ARN is of one stream, name that one in streams, or give the consumer's name")
        return self


def _kind(source: Any) -> Any:
    return source.get("kind", "dynamodb-stream") if isinstance(source, Mapping) else getattr(source, "kind", None)


KINDS = ("dynamodb-stream", "kinesis")
SourceSettings: TypeAlias = Annotated[
    Annotated[DynamoDBStreamSettings, Tag("dynamodb-stream")] | Annotated[KinesisSettings, Tag("kinesis")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message=f"kind: expected one of {', '.join(KINDS)}",
    ),
]
