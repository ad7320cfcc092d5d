"""The settings of the destinations: `[lake]`, `[[lakes]]`, `[[mirrors]]`, `[[replicas]]`, `[[pubsubs]]`."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from pipeline.errors import UsageError
from pipeline.settings.base import Name, Section, template
from pipeline.settings.kafka import Properties, _flat, not_ours

LAKE_FIELDS = ("table", "sink", "op", "date", "hour", "year", "month", "day")
"""What the directories of the lake may be made of."""


class LakeSettings(Section):
    """Parquet files of the sink topics, in an object store."""

    url: str | None = Field(
        None,
        description="s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///directory; without it, there is "
        "no lake.",
    )
    sinks: tuple[Name, ...] = Field(
        (), description="The sinks whose changes it takes; empty: all with the envelope dynamodb in JSON."
    )
    layout: Literal["envelope", "columns"] = Field(
        "envelope",
        description="envelope: the same columns for every table, images as typed JSON. columns: the item's attributes as typed "
        "columns.",
    )
    path: str = Field(
        "",
        description="The directories of files, by the time of the change: {table}, {sink}, {op}, {date}, {hour}, {year}, "
        "{month}, {day}. Without it, a lake keeps the path it began with; a new one has "
        "source_table={table}/changed_date={date}/changed_hour={hour}.",
    )
    table: Literal["parquet", "iceberg"] = Field(
        "parquet",
        description="parquet: files in directories. iceberg: tables in a catalog, one for each DynamoDB table.",
    )
    mode: Literal["append", "upsert"] = Field(
        "append",
        description="With iceberg: append: one row a change. upsert: one row an item, as it is now; deletions are applied.",
    )
    catalog: Annotated[dict[str, str], BeforeValidator(_flat)] = Field(
        default_factory=dict,
        description="With iceberg: the catalog, as pyiceberg takes it: type (sql, rest, glue), uri, ...; `warehouse` is "
        "lake.url where it is not given.",
        repr=False,  # credentials may be among them
    )
    namespace: str = Field("headwater", min_length=1, description="With iceberg: the namespace of the tables.")
    max_rows: int = Field(1_000_000, ge=1, description="Rows after which the files of a partition are closed.")
    max_size: int = Field(
        128 << 20,
        ge=1 << 16,
        description="About how many bytes of Parquet after which the files of a partition are closed.",
    )
    max_age: float = Field(
        60.0, gt=0, description="Seconds after which the files of a partition are closed, also when it is idle."
    )
    max_span: float = Field(
        0.0, ge=0, description="Seconds between the oldest and the newest change after which files are closed; 0: any."
    )
    memory: int = Field(
        256 << 20,
        ge=1 << 20,
        description="Bytes of memory for open files in a worker; near it the largest are closed early, beyond it reading "
        "waits.",
    )

    @model_validator(mode="after")
    def _modes_are_of_tables(self) -> LakeSettings:
        if self.mode == "upsert" and self.table != "iceberg":
            raise ValueError('mode = "upsert" needs table = "iceberg": files are never changed')
        if self.table == "iceberg" and "type" not in self.catalog and "uri" not in self.catalog:
            raise ValueError('table = "iceberg" needs lake.catalog: type = "sql", "rest" or "glue", uri = ...')
        return self

    @field_validator("path")
    @classmethod
    def _directories(cls, path: str) -> str:
        unknown = [name for name in re.findall(r"\{([^{}]*)\}", path) if name not in LAKE_FIELDS]
        if unknown:
            raise ValueError(f"{{{unknown[0]}}}: expected {', '.join('{' + name + '}' for name in LAKE_FIELDS)}")
        if path and "{table}" not in path:
            raise ValueError("needs {table}: a file holds the changes of one table")
        if path.startswith("/") or path.endswith("/") or re.search(r"[{}]", re.sub(r"\{\w+\}", "", path)):
            raise ValueError("expected directories such as source_table={table}/changed_date={date}")
        return path


class NamedLakeSettings(LakeSettings):
    """One more lake of the sink topics, with settings of its own. It is run by itself: headwater run lake.NAME."""

    name: Name = Field(description="Its name; no two may have the same: headwater run lake.NAME.")


class MirrorSettings(Section):
    """Copies sink topics to another Kafka cluster, exactly once. It is run by itself: headwater run mirror."""

    name: Name = Field("mirror", description="Its name; no two may have the same: headwater run mirror.NAME.")
    bootstrap_servers: str = Field(min_length=1, description="Brokers of the other cluster, comma-separated host:port.")
    properties: Properties = Field(
        default_factory=dict,
        description="Any librdkafka property for the other cluster: security.protocol, sasl.username, ...; env:NAME takes the "
        "value of a variable.",
        repr=False,  # passwords are among them
    )
    sinks: tuple[Name, ...] = Field((), description="The sinks whose topics are copied; empty: all.")
    topic: Annotated[str, template("topic", "sink")] = Field(
        "{topic}",
        description="What a topic is called there: {topic} is its name here, {sink} that of its sink.",
    )
    cluster: Name | None = Field(
        None,
        description="What this cluster is called in the header `mirrored_from`; without it, the cluster's ID. What comes from "
        "the other cluster itself is not sent back to it.",
    )
    target_cluster: Name | None = Field(
        None,
        description="What the other cluster is called there, where the mirror that comes back from it sets `cluster`.",
    )
    replication_factor: int = Field(3, ge=1, le=32, description="Replicas of topics that are created there.")

    @property
    def conf(self) -> dict[str, Any]:
        """What every client of the other cluster is configured with, for librdkafka; raises UsageError without a secret."""
        return {"bootstrap.servers": self.bootstrap_servers, **{k: _secret(k, v) for k, v in self.properties.items()}}

    @field_validator("properties")
    @classmethod
    def _ours(cls, properties: dict[str, Any]) -> dict[str, Any]:
        return not_ours(properties)


def _secret(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("env:"):
        return value
    variable = value.removeprefix("env:")
    if variable not in os.environ:
        raise UsageError(
            f"mirrors.properties: {name}: the variable {variable} is not set", hint=f"export {variable}=..."
        )
    return os.environ[variable]


class PubSubSettings(Section):
    """Publishes sink topics to Google Pub/Sub, at least once. It is run by itself: headwater run pubsub."""

    name: Name = Field("pubsub", description="Its name; no two may have the same: headwater run pubsub.NAME.")
    project: str = Field(min_length=1, description="The project of the topics.")
    sinks: tuple[Name, ...] = Field((), description="The sinks whose topics are published; empty: all.")
    topic: Annotated[str, template("topic", "sink", more="~+%")] = Field(
        "{topic}",
        description="The Pub/Sub topic: {topic} is the Kafka topic's name, {sink} that of the sink. It must exist.",
    )
    endpoint: str | None = Field(
        None, description="host:port of a regional endpoint; an emulator is named by PUBSUB_EMULATOR_HOST."
    )


class ReplicaSettings(Section):
    """Keeps another DynamoDB table equal to a captured one. It is run by itself: headwater run replica."""

    name: Name = Field("replica", description="Its name; no two may have the same: headwater run replica.NAME.")
    sinks: tuple[Name, ...] = Field(min_length=1, description="The sinks whose changes are applied.")
    table: Annotated[str, template("table")] = Field(
        "{table}",
        description="The table that changes are applied to; {table} is the name of the table that they come from.",
    )
    region: str | None = Field(None, description="AWS Region of the replica; without it, boto3's default.")
    endpoint_url: str | None = Field(None, description="Another endpoint than AWS's, as for DynamoDB Local.")
    role_arn: str | None = Field(None, description="The role to assume, for example in another account.")
    version: Literal["attribute", "table"] = Field(
        "attribute",
        description="Where an item's version is kept: in an attribute of the item, or in a table of versions beside it.",
    )
    version_attribute: str = Field("_headwater", min_length=1, description="With attribute: its name.")
    version_table: Annotated[str, template("table")] = Field(
        "{table}.versions",
        description="The table of versions beside the replica: with table of all items, with attribute of deleted ones alone. "
        "Its partition key is `item`, a string. {table} as above.",
    )
    tombstone_seconds: float = Field(
        86_400,
        ge=0,
        description="Seconds for which a deleted item's version is remembered, so that an older change does not bring it back; "
        "0: not at all.",
    )
    threads: int = Field(8, ge=1, le=64, description="Partitions written at once in a worker.")


def group_of(prefix: str, kind: str, name: str) -> str:
    """Return the consumer group of a mirror, a replica, Pub/Sub or one of [[lakes]]."""
    return f"{prefix}.{kind}.{name}"
