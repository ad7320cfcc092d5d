"""The settings of the Kafka cluster and of the Schema Registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from pipeline.limits import MESSAGE_MAX
from pipeline.settings.base import Name, Section

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


class KafkaSettings(Section):
    """The Kafka cluster."""

    bootstrap_servers: str = Field("127.0.0.1:9092", min_length=1, description="Brokers, host:port, comma-separated.")
    replication_factor: int = Field(3, ge=1, le=32, description="Replicas of the topics that Headwater creates.")
    max_message_bytes: int = Field(
        MESSAGE_MAX,
        ge=1 << 20,
        le=64 << 20,
        description="Largest record, in bytes: `max.message.bytes` of the topics that Headwater creates. A cluster may allow "
        "less (Confluent Cloud 8 MiB): then they are created so. What is larger becomes a dead letter.",
    )
    session_timeout: float = Field(
        SESSION_TIMEOUT, ge=1, le=300, description="Seconds without a heartbeat until a worker counts as dead."
    )
    group_protocol: Literal["classic", "consumer"] = Field(
        "classic",
        description="consumer: KIP-848, where the broker assigns partitions and sets the time-outs; Kafka 4.0 or newer.",
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
    def _the_broker_sets_the_time_out(self) -> KafkaSettings:
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


class RegistrySettings(Section):
    """A Schema Registry with Confluent's API, for the formats that need one."""

    url: str | None = Field(None, description="http(s)://host:port, several comma-separated.")
    properties: Properties = Field(
        default_factory=dict,
        description="More of the registry's client: basic.auth.user.info, ssl.ca.location, ...",
        repr=False,  # passwords are among them
    )
