"""The settings of what a flow writes: `envelope`, `format`, `key_format`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    model_validator,
)

from pipeline.settings.base import Section


def as_kind(value: Any) -> Any:
    """Take a kind alone for a table that says no more than its kind."""
    return {"kind": value} if isinstance(value, str) else value


ENVELOPES_WITH = {
    "numbers": ("plain", "debezium", "cloudevents"),
    "tombstone": ("plain", "debezium"),
    "images": ("debezium",),
    "mode": ("cloudevents",),
}
"""The kinds of envelopes that have a setting."""


class EnvelopeSettings(Section):
    """The shape of a message."""

    kind: Literal["dynamodb", "plain", "debezium", "cloudevents"] = Field(
        "dynamodb",
        description="dynamodb: as AWS gives it. plain: the item as plain JSON. debezium, cloudevents: as those have it.",
    )
    numbers: Literal["exact", "string"] = Field(
        "exact", description="Numbers in plain JSON: as JSON numbers with all their digits, or as strings."
    )
    tombstone: bool | None = Field(
        None,
        description="plain: a deletion is a tombstone (the default), else the old item. debezium: one follows a "
        "deletion (not by default).",
    )
    images: Literal["plain", "document"] = Field(
        "plain",
        description="debezium: `before` and `after` as plain JSON, or as Confluent's Amazon DynamoDB CDC connector has them: "
        '`{"document": "..."}`, the typed JSON as one text.',
    )
    mode: Literal["binary", "structured"] = Field(
        "binary", description="cloudevents: the attributes in headers, or all in one JSON object."
    )

    @model_validator(mode="after")
    def _settings_are_of_the_kind(self) -> EnvelopeSettings:
        for name, kinds in ENVELOPES_WITH.items():
            if name in self.model_fields_set and self.kind not in kinds:
                raise ValueError(f"{name}: the envelope {self.kind} has no such setting, only {', '.join(kinds)}")
        return self


FormatKind = Literal["json", "avro", "protobuf", "json-schema"]


class FormatSettings(Section):
    """How messages are encoded."""

    kind: FormatKind = Field("json", description="json, or a format with its schemas in the schema registry.")
    on_conflict: Literal["reject", "widen"] = Field(
        "reject",
        description="When a value does not fit its attribute's schema: a dead letter, or from then on a wider type.",
    )
    schemas: bool = Field(
        False,
        description='json: each message is {"schema": ..., "payload": ...}, as Kafka Connect reads and writes it with '
        "schemas.enable=true.",
    )
    former_names: Literal["keep", "migrate"] = Field(
        "keep",
        description="debezium, with a schema registry: whether a subject whose records an earlier version has named keeps "
        "these names, or gets those that Debezium gives (migrate).",
    )

    @model_validator(mode="after")
    def _settings_are_of_the_kind(self) -> FormatSettings:
        if self.schemas and self.kind != "json":
            raise ValueError(f"schemas: only json has them in its messages, {self.kind} has them in the registry")
        if self.kind == "json" and "former_names" in self.model_fields_set:
            raise ValueError("former_names: json has no subjects in a schema registry")
        return self

    @property
    def is_registered(self) -> bool:
        """Whether its schemas are in the schema registry."""
        return self.kind != "json"

    @property
    def has_schema(self) -> bool:
        """Whether readers get a schema, by the registry or in each message."""
        return self.is_registered or self.schemas


class KeyFormatSettings(Section):
    """How the keys of messages are encoded."""

    kind: FormatKind = Field(
        "json",
        description="json: the item key, in DynamoDB's typed JSON. Else a struct of the key attributes, with its schema in the "
        "schema registry.",
    )
    schemas: bool = Field(
        False,
        description='json: a struct of the key attributes, as {"schema": ..., "payload": ...}, which Kafka Connect reads with '
        "schemas.enable=true.",
    )

    @model_validator(mode="after")
    def _settings_are_of_the_kind(self) -> KeyFormatSettings:
        if self.schemas and self.kind != "json":
            raise ValueError(f"schemas: only json has them in its messages, {self.kind} has them in the registry")
        return self

    @property
    def is_registered(self) -> bool:
        """Whether its schemas are in the schema registry."""
        return self.kind != "json"

    @property
    def is_struct(self) -> bool:
        """Whether a key is a struct, not the item key."""
        return self.is_registered or self.schemas
