"""Every setting, typed, read once at the edge: environment (`HEADWATER_`), `.env`, `headwater.toml`."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from dotenv import dotenv_values
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from pipeline.errors import UsageError
from pipeline.files.toml_lines import line_of
from pipeline.limits import MESSAGE_MAX
from pipeline.settings.flows import (
    ENRICH_KINDS,
    Compute,
    Envelope,
    Flow,
    Format,
    Join,
    Lookup,
    Mask,
    Name,
    Python,
    Route,
    Section,
    Sql,
    formed,
    template,
)

ENV_PREFIX = "HEADWATER_"
DEFAULT_FILE = "headwater.toml"
PATTERN = formed(r"[A-Za-z0-9._*?-]+", "a name, or a pattern of names with * and ?")
StreamName = Annotated[str, Field(max_length=128), PATTERN]
TableName = Annotated[str, Field(max_length=255), PATTERN]
CONSUMER = formed(
    r"[A-Za-z0-9._-]{1,128}|arn:[a-z-]+:kinesis:[^/]+:stream/[A-Za-z0-9._-]+/consumer/[A-Za-z0-9._-]+:[0-9]+",
    "a name of letters, digits, . _ - or the ARN of a consumer",
)


S3_URL = r"^s3://[a-z0-9.-]+(/.*)?$"
SESSION_TIMEOUT = 10.0
OWNED = {
    "group.id",
    "transactional.id",
    "enable.auto.commit",
    "isolation.level",
    "auto.offset.reset",
    "partition.assignment.strategy",
    "group.remote.assignor",
}
"""Properties of librdkafka that are not the user's to set."""
SETTINGS_OF_THEIR_OWN = {"group.protocol": "group_protocol", "group.instance.id": "instance_id"}


def _flatten(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flatten(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


def _flat(properties: Any) -> Any:
    """Take `security.protocol = "SASL_SSL"` as it is written in a properties file: in TOML it is a nested table."""
    return _flatten(properties) if isinstance(properties, Mapping) else properties


Properties: TypeAlias = Annotated[dict[str, str | int | float | bool], BeforeValidator(_flat)]
"""Properties of a client, by their dotted names."""


class Kafka(Section):
    """The Kafka cluster."""

    bootstrap_servers: str = Field("127.0.0.1:9092", min_length=1, description="Brokers, host:port, comma-separated.")
    replication_factor: int = Field(3, ge=1, le=32, description="Replicas of the topics that Headwater creates.")
    max_message_bytes: int = Field(
        MESSAGE_MAX,
        ge=1 << 20,
        le=64 << 20,
        description="Bytes of a record at most: `max.message.bytes` of the topics that Headwater creates. A cluster may allow "
        "less (Confluent Cloud 8 MiB): then they are created so. What is larger becomes a dead letter.",
    )
    session_timeout: float = Field(
        SESSION_TIMEOUT, ge=1, le=300, description="Seconds without a heartbeat until a worker is taken for dead."
    )
    group_protocol: Literal["classic", "consumer"] = Field(
        "classic",
        description="consumer: KIP-848, where the broker shares partitions out and sets the time-outs; Kafka 4.0 or newer.",
    )
    instance_id: Name | None = Field(
        None,
        description="The worker's own name in the group (static membership): a restart within the session time-out gets its "
        "partitions back, and nobody else's move.",
    )
    properties: Properties = Field(
        default_factory=dict,
        description="Any librdkafka property, for every client: security.protocol, sasl.username, ...",
        repr=False,  # passwords are among them
    )

    @property
    def conf(self) -> dict[str, Any]:
        """What every client of the cluster is configured with, for librdkafka."""
        return {"bootstrap.servers": self.bootstrap_servers, **self.properties}

    @field_validator("properties")
    @classmethod
    def _ours(cls, properties: dict[str, Any]) -> dict[str, Any]:
        for name, setting in SETTINGS_OF_THEIR_OWN.items():
            if name in properties:
                raise ValueError(f"{name}: set kafka.{setting} instead")
        return not_ours(properties)

    @model_validator(mode="after")
    def _the_broker_sets_the_time_out(self) -> Kafka:
        if self.group_protocol == "consumer" and self.session_timeout != SESSION_TIMEOUT:
            raise ValueError(
                "session_timeout: with group_protocol consumer the broker sets it (group.consumer.session.timeout.ms)"
            )
        return self


def not_ours(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the properties; raise ValueError when one of them is not the user's to set."""
    if owned := sorted(OWNED & set(properties)):
        raise ValueError(f"{', '.join(owned)}: Headwater sets this itself, exactly-once depends on it")
    return properties


class DynamoDBStream(Section):
    """Changes of DynamoDB tables, read from their streams."""

    kind: Literal["dynamodb-stream"] = Field("dynamodb-stream", description="The kind of the source.")
    tables: tuple[TableName, ...] = Field(
        (), description="Names of the tables, or patterns: * for any characters, ? for one."
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Tags: each table that carries all of them.")
    start: Literal["trim_horizon", "latest"] | AwareDatetime = Field(
        "trim_horizon",
        description="Where a stream begins when it is first found: with all it holds (24 h), with what comes, or at a time.",
    )
    region: str | None = Field(None, description="AWS Region; without it, boto3's default.")
    discovery_interval: float = Field(60.0, ge=0.1, description="Seconds between two looks for new shards and streams.")
    poll_interval: float = Field(
        0.25,
        ge=0.01,
        description="Seconds until a shard that gave little is asked again; with nothing, longer and longer.",
    )
    idle_calls: float = Field(
        15.0, gt=0, description="GetRecords calls a second that a worker's idle shards make at most together."
    )
    threads: int = Field(8, ge=1, le=64, description="GetRecords calls under way at once in a worker.")
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
        "may go back for a moment, never for good.",
    )

    @model_validator(mode="after")
    def _something_to_capture(self) -> DynamoDBStream:
        if not self.tables and not self.tags:
            raise ValueError("name tables, or tags that tables carry")
        return self


class Kinesis(Section):
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
        description="Where a stream begins when it is first found: with all it holds, with what comes, or at a time.",
    )
    start_after: dict[str, str] = Field(
        default_factory=dict,
        description="By shard ID, the sequence number of the last record that another reader has read, for a stream that is "
        "first found: those shards begin behind it, their parents are not read, the others begin as `start` says.",
    )
    region: str | None = Field(None, description="AWS Region; without it, boto3's default.")
    discovery_interval: float = Field(60.0, ge=0.1, description="Seconds between two looks for new shards and streams.")
    poll_interval: float = Field(
        0.25,
        ge=0.01,
        description="Seconds until a shard that gave little is asked again; Kinesis takes 5 calls a second and shard.",
    )
    idle_calls: float = Field(
        15.0, gt=0, description="GetRecords calls a second that a worker's idle shards make at most together."
    )
    threads: int = Field(8, ge=1, le=64, description="GetRecords calls under way at once in a worker.")

    @model_validator(mode="after")
    def _an_event_id_needs_fields(self) -> Kinesis:
        if self.event_id_field is not None and self.codec != "json":
            raise ValueError('event_id_field: only records of codec = "json" have fields to take')
        return self

    @model_validator(mode="after")
    def _only_dynamodb_is_out_of_order(self) -> Kinesis:
        if self.resequence and self.codec != "dynamodb":
            raise ValueError('resequence: only what DynamoDB delivers (codec = "dynamodb") says when it happened')
        return self

    @model_validator(mode="after")
    def _a_consumer_has_one_stream(self) -> Kinesis:
        if ":" in self.consumer and self.streams != (self.consumer.partition(":stream/")[2].partition("/")[0],):
            raise ValueError("consumer: an ARN is of one stream, name that one in streams, or give the consumer's name")
        return self


def _kind(source: Any) -> Any:
    return source.get("kind", "dynamodb-stream") if isinstance(source, Mapping) else getattr(source, "kind", None)


KINDS = ("dynamodb-stream", "kinesis")
PARTS = (
    DynamoDBStream,
    Kinesis,
    Flow,
    Route,
    Join,
    Compute,
    Sql,
    Lookup,
    Python,
    Mask,
    Envelope,
    Format,
)
"""What stands in lists."""
SourceSettings: TypeAlias = Annotated[
    Annotated[DynamoDBStream, Tag("dynamodb-stream")] | Annotated[Kinesis, Tag("kinesis")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message=f"kind: expected one of {', '.join(KINDS)}",
    ),
]


class Registry(Section):
    """A Schema Registry with Confluent's API, for the formats that need one."""

    url: str | None = Field(None, description="http(s)://host:port, several comma-separated.")
    properties: Properties = Field(
        default_factory=dict,
        description="More of the registry's client: basic.auth.user.info, ssl.ca.location, ...",
        repr=False,  # passwords are among them
    )


LAKE_FIELDS = ("table", "sink", "op", "date", "hour", "year", "month", "day")
"""What the directories of the lake may be made of."""


class Lake(Section):
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
        "{month}, {day}. Without it a lake keeps what it has begun with, a new one "
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
        128 << 20, ge=1 << 16, description="Bytes of Parquet, about, after which the files of a partition are closed."
    )
    max_age: float = Field(
        60.0, gt=0, description="Seconds after which the files of a partition are closed, also when nothing comes."
    )
    max_span: float = Field(
        0.0, ge=0, description="Seconds between the oldest and the newest change after which files are closed; 0: any."
    )
    memory: int = Field(
        256 << 20,
        ge=1 << 20,
        description="Bytes that open files take in a worker; near it the largest are closed early, beyond it reading waits.",
    )

    @model_validator(mode="after")
    def _modes_are_of_tables(self) -> Lake:
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


class NamedLake(Lake):
    """One more lake of the sink topics, with settings of its own. It is run by itself: headwater run lake.NAME."""

    name: Name = Field(description="Its name, of its own: headwater run lake.NAME.")


class Mirror(Section):
    """Copies sink topics to another Kafka cluster, exactly once. It is run by itself: headwater run mirror."""

    name: Name = Field("mirror", description="Its name, of its own: headwater run mirror.NAME.")
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
    replication_factor: int = Field(3, ge=1, le=32, description="Replicas of topics that are made there.")

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


class PubSub(Section):
    """Publishes sink topics to Google Pub/Sub, at least once. It is run by itself: headwater run pubsub."""

    name: Name = Field("pubsub", description="Its name, of its own: headwater run pubsub.NAME.")
    project: str = Field(min_length=1, description="The project of the topics.")
    sinks: tuple[Name, ...] = Field((), description="The sinks whose topics are published; empty: all.")
    topic: Annotated[str, template("topic", "sink", more="~+%")] = Field(
        "{topic}",
        description="The Pub/Sub topic: {topic} is the Kafka topic's name, {sink} that of the sink. It must be there.",
    )
    endpoint: str | None = Field(
        None, description="host:port of a regional endpoint; an emulator is named by PUBSUB_EMULATOR_HOST."
    )


class Replica(Section):
    """Keeps another DynamoDB table equal to a captured one. It is run by itself: headwater run replica."""

    name: Name = Field("replica", description="Its name, of its own: headwater run replica.NAME.")
    sinks: tuple[Name, ...] = Field(min_length=1, description="The sinks whose changes are applied.")
    table: Annotated[str, template("table")] = Field(
        "{table}",
        description="The table that changes are applied to; {table} is the name of the table that they come from.",
    )
    region: str | None = Field(None, description="AWS Region of the replica; without it, boto3's default.")
    endpoint_url: str | None = Field(None, description="Another endpoint than AWS's, as for DynamoDB Local.")
    role_arn: str | None = Field(None, description="The role to assume, as in another account.")
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


class Web(Section):
    """The worker's HTTP endpoint: /livez, /readyz, /metrics and Faust's own pages."""

    enabled: bool = Field(True, description="Whether a worker listens.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(6066, ge=0, le=65535, description="Port to listen on; each worker of a machine needs its own.")


def group_of(prefix: str, kind: str, name: str) -> str:
    """Return the consumer group of a mirror or a replica."""
    return f"{prefix}.{kind}.{name}"


class Settings(BaseSettings):
    """All settings of Headwater."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    prefix: Name = Field("headwater", description="What the names of all topics and of the consumer group begin with.")
    state_dir: Path = Field(
        Path(".headwater/state"), description="RocksDB and the transactional ID; one directory a worker."
    )
    agents: tuple[Name, ...] = Field(
        (), description="The agents that a worker runs; empty: all that the settings have work for."
    )
    partitions: int = Field(
        8,
        ge=1,
        le=10_000,
        description="Partitions of ingest, raw and sink topics. It is part of the state: do not change it.",
    )
    commit_interval: float = Field(
        0.1, ge=0.01, le=5, description="Seconds of work in one transaction; with a backlog up to three times as much."
    )
    processing_guarantee: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once", description="at_least_once: without transactions; a crash can double what it had in hand."
    )
    on_error: Literal["stop", "dead_letter"] = Field(
        "stop",
        description="When an agent fails at a batch: stop the worker, or find the record at fault and dead-letter it.",
    )
    dedup_window: float = Field(172_800, ge=60, description="Seconds for which an event ID is remembered.")
    standby_replicas: int = Field(
        0,
        ge=0,
        le=2,
        description="Workers that may be lost at once while others have a warm copy of their seen table; exactly_once only.",
    )
    kafka: Kafka = Kafka()
    sources: tuple[SourceSettings, ...] = Field((), description="Where changes come from: see [[sources]].")
    flows: tuple[Flow, ...] = ()
    modules: tuple[str, ...] = Field((), description="Python modules with functions for flows: see @enrich.")
    schema_registry: Registry = Registry()
    lake: Lake = Lake()
    lakes: tuple[NamedLake, ...] = Field((), description="More lakes: see [[lakes]].")
    mirrors: tuple[Mirror, ...] = Field((), description="Other Kafka clusters: see [[mirrors]].")
    pubsubs: tuple[PubSub, ...] = Field((), description="Google Pub/Sub: see [[pubsubs]].")
    replicas: tuple[Replica, ...] = Field((), description="Other DynamoDB tables: see [[replicas]].")
    web: Web = Web()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        named: dict[str, Any] = {
            "flows": self.flows,
            "mirrors": self.mirrors,
            "replicas": self.replicas,
            "lakes": self.lakes,
            "pubsubs": self.pubsubs,
        }
        for kind, things in named.items():
            names = [thing.name for thing in things]
            for number, name in enumerate(names):
                if name in names[:number]:
                    raise ValueError(f"{kind}.{number}.name: more than one is named {name}")
        return self

    @property
    def destination(self) -> tuple[str, str] | None:
        """Which mirror, replica, Pub/Sub or lake of [[lakes]] the worker runs, by kind and name; None: it runs other agents.

        Raises UsageError where that is not clear.
        """
        kinds = {"mirror": self.mirrors, "replica": self.replicas, "lake": self.lakes, "pubsub": self.pubsubs}
        # The lake of [lake] is in the group of the others.
        wanted = [agent for agent in self.agents if agent.partition(".")[0] in kinds and agent != "lake"]
        if not wanted:
            return None
        kind, _, name = wanted[0].partition(".")
        if len(self.agents) > 1:
            raise UsageError(
                f"{wanted[0]} reads beside the others, in a consumer group of its own: it needs a worker of its own",
                hint=f"headwater run {wanted[0]}",
            )
        known = [one.name for one in kinds[kind]]  # type: ignore[attr-defined]  # all have one
        if not name and len(known) == 1:
            name = known[0]
        if name not in known:
            names = ", ".join(f"{kind}.{one}" for one in known)
            raise UsageError(
                f"the settings have no {kind} named {name!r}" if name else f"which {kind}: {names or 'there is none'}?",
                hint=f"headwater run {kind}.{known[0]}" if known else f"add [[{kind}s]] to headwater.toml",
            )
        return kind, name

    @property
    def chosen_lake(self) -> Lake:
        """The lake that the worker runs: that of [lake], or one of [[lakes]]."""
        named = {lake.name: lake for lake in self.lakes}
        return named[self.destination[1]] if self.destination and self.destination[0] == "lake" else self.lake

    @property
    def group(self) -> str:
        """The worker's consumer group: the prefix, or one of its own for a mirror, a replica, a lake of [[lakes]]."""
        if self.destination is None:
            return self.prefix
        kind, name = self.destination
        return group_of(self.prefix, kind, name)

    @model_validator(mode="after")
    def _formats_have_a_registry(self) -> Settings:
        for number, flow in enumerate(self.flows):
            for name, form in (("format", flow.format), ("key_format", flow.key_format)):
                if form.is_registered and self.schema_registry.url is None:
                    raise ValueError(f"flows.{number}.{name}: {form.kind} needs schema_registry.url")
        return self

    @model_validator(mode="after")
    def _standbys_read_committed_records(self) -> Settings:
        if self.standby_replicas > 0 and self.processing_guarantee != "exactly_once":
            raise ValueError("standby_replicas: needs processing_guarantee exactly_once")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: arguments, environment, .env, the file named by HEADWATER_CONFIG or ./headwater.toml."""
        file = TomlConfigSettingsSource(settings_cls, toml_file=config_file(os.environ))
        return (
            init_settings,
            env_settings,
            _Ours(settings_cls, cast("DotEnvSettingsSource", dotenv_settings).env_file),
            file,
        )


class _Ours(DotEnvSettingsSource):
    """The settings of .env; the variables of other programs there are none of our business."""

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if name in self.settings_cls.model_fields}


NOT_SETTINGS = {"HEADWATER_CONFIG", "HEADWATER_BIN", "HEADWATER_REQUIRE_KAFKA", "HEADWATER_TEST_EXAMPLES"}
"""Variables that begin like settings: where the settings file is, where scripts find the command, switches of the tests."""


def config_file(environment: Mapping[str, str]) -> Path:
    """Return the settings file: HEADWATER_CONFIG, or headwater.toml in the working directory."""
    return Path(environment.get("HEADWATER_CONFIG", DEFAULT_FILE))


def load(**overrides: Any) -> Settings:
    """Read the settings; raise UsageError with one line that names each wrong key and what was expected."""
    file = config_file(os.environ)
    if "HEADWATER_CONFIG" in os.environ and not file.is_file():
        raise UsageError(f"HEADWATER_CONFIG: there is no file {file}", hint="ls headwater.toml")
    for where, names in (("environment", os.environ), (".env", dotenv_values(".env"))):
        unknown = sorted(name for name in names if name.startswith(ENV_PREFIX) and not _is_setting(name))
        if unknown:
            raise UsageError("; ".join(f"{where}: {name} is no setting{_guess(name)}" for name in unknown), hint=_HINT)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        raise UsageError(f"{file} or environment: {'; '.join(_problems(error, file, text))}", hint=_HINT) from error
    except SettingsError as error:
        wrong = re.search(r'field "(\w+)"', str(error))
        name = ENV_PREFIX + wrong[1].upper() if wrong else "a variable"
        raise UsageError(f"environment: {name} is not the JSON that was expected", hint=_HINT) from error
    except (OSError, ValueError) as error:  # a file that cannot be read, or is no TOML
        raise UsageError(f"{file}: {error}", hint=_HINT) from error


_HINT = "docs/reference/settings.md"


def place_of(flow: Flow, path: Sequence[str | int]) -> str:
    """Return file:line of a setting of a flow, '' when the flow does not stand in the settings file as it is."""
    file = config_file(os.environ)
    try:
        text = file.read_text(encoding="utf-8")
        written = tomllib.loads(text).get("flows", [])
    except (OSError, ValueError):
        return ""
    for number, one in enumerate(written):
        with suppress(ValidationError):
            if Flow.model_validate(one) == flow:
                return f"{file}:{line_of(text, ('flows', number, *path))}"
    return ""


def keys(model: type[BaseModel] = Settings, before: str = "") -> list[str]:
    """Return the dotted names of all settings: `prefix`, `kafka.bootstrap_servers`, ..."""
    names = []
    for name, field in model.model_fields.items():
        names.append(f"{before}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names.extend(keys(field.annotation, f"{before}{name}."))
    return names


def _is_setting(variable: str) -> bool:
    name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
    return variable in NOT_SETTINGS or name in keys() or name.startswith("kafka.properties.")


def _guess(variable: str) -> str:
    names = [ENV_PREFIX + key.upper().replace(".", "__") for key in keys()]
    near = difflib.get_close_matches(variable, names, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _problems(error: ValidationError, file: Path, text: str) -> list[str]:
    """Return each problem in words, with its line where it stands in the file; else it may come from the environment."""
    found = error.errors(include_url=False, include_input=False)
    places = [one["loc"] for one in found]
    problems = []
    for one in found:
        loc = one["loc"]
        if one["type"] == "too_short" and any(place[: len(loc)] == loc != place for place in places):
            continue  # what is wrong with the entries is said already
        message = one["msg"].removeprefix("Value error, ")
        said = message.partition(":")[0].split(".")  # what looks at several settings says itself at which of them
        line = line_of(text, [*loc, *(int(part) if part.isdigit() else part for part in said)])
        problems.append(_explain(loc, one["type"], message) + (f" ({file}:{line})" if line else ""))
    return problems


def _explain(loc: tuple[str | int, ...], kind: str, message: str) -> str:
    known = {*KINDS, *ENRICH_KINDS}  # pydantic puts the members of unions in
    parts = [str(part) for n, part in enumerate(loc) if n == len(loc) - 1 or part not in known]
    path = ".".join(parts)
    if kind != "extra_forbidden":
        return f"{path}: {message}" if path else message
    parent, last = ".".join(parts[:-1]), parts[-1]
    names = {key.rpartition(".")[2] for key in keys() if key.rpartition(".")[0] == parent} or {
        field.alias or name for model in PARTS for name, field in model.model_fields.items()
    }
    near = difflib.get_close_matches(last, sorted(names), n=1)
    return f"{path}: there is no such key" + (f", did you mean {near[0]}?" if near else "")
