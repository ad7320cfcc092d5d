"""Every setting, typed, read once at the edge: environment (`HEADWATER_`), `.env`, `headwater.toml`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import (
    Field,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipeline.errors import UsageError
from pipeline.settings.base import Name, Section
from pipeline.settings.flows import FlowSettings
from pipeline.settings.kafka import KafkaSettings, RegistrySettings
from pipeline.settings.sinks import (
    LakeSettings,
    MirrorSettings,
    NamedLakeSettings,
    PubSubSettings,
    ReplicaSettings,
    group_of,
)
from pipeline.settings.sources import SourceSettings

ENV_PREFIX = "HEADWATER_"
DEFAULT_FILE = "headwater.toml"


class WebSettings(Section):
    """The worker's HTTP endpoint: /livez, /readyz, /metrics and Faust's own pages."""

    enabled: bool = Field(True, description="Whether a worker serves HTTP.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(6066, ge=0, le=65535, description="Port to listen on; each worker of a machine needs its own.")


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

    prefix: Name = Field("headwater", description="How the names of all topics and of the consumer group begin.")
    state_dir: Path = Field(
        Path(".headwater/state"), description="RocksDB and the transactional ID; one directory for each worker."
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
        "exactly_once", description="at_least_once: without transactions; a crash can duplicate what was in progress."
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
    kafka: KafkaSettings = KafkaSettings()
    sources: tuple[SourceSettings, ...] = Field((), description="Where changes come from: see [[sources]].")
    flows: tuple[FlowSettings, ...] = ()
    modules: tuple[str, ...] = Field((), description="Python modules with functions for flows: see @enrich.")
    schema_registry: RegistrySettings = RegistrySettings()
    lake: LakeSettings = LakeSettings()
    lakes: tuple[NamedLakeSettings, ...] = Field((), description="More lakes: see [[lakes]].")
    mirrors: tuple[MirrorSettings, ...] = Field((), description="Other Kafka clusters: see [[mirrors]].")
    pubsubs: tuple[PubSubSettings, ...] = Field((), description="Google Pub/Sub: see [[pubsubs]].")
    replicas: tuple[ReplicaSettings, ...] = Field((), description="Other DynamoDB tables: see [[replicas]].")
    web: WebSettings = WebSettings()

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
                f"{wanted[0]} has its own consumer group: it needs its own worker",
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
    def chosen_lake(self) -> LakeSettings:
        """The lake that the worker runs: that of [lake], or one of [[lakes]]."""
        named = {lake.name: lake for lake in self.lakes}
        return named[self.destination[1]] if self.destination and self.destination[0] == "lake" else self.lake

    @property
    def group(self) -> str:
        """The worker's consumer group: the prefix, or one of its own for a mirror, a replica, Pub/Sub, a lake of [[lakes]]."""
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


def config_file(environment: Mapping[str, str]) -> Path:
    """Return the settings file: HEADWATER_CONFIG, or headwater.toml in the working directory."""
    return Path(environment.get("HEADWATER_CONFIG", DEFAULT_FILE))
