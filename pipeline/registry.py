"""The Schema Registry, by confluent-kafka's own client. Blocks; in the transaction's thread."""

from __future__ import annotations

from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.errors import TransientError, UsageError
from pipeline.settings import Registry as RegistrySettings

INCOMPATIBLE = 409
NO_SUBJECT = {40401, 40402}


class IncompatibleError(ValueError):
    """The registry refuses a schema, as it does not go with those before it."""


class SchemaRegistry:
    """See `steps.formats.registered.Registry`."""

    def __init__(self, settings: RegistrySettings) -> None:
        try:
            self._client: SchemaRegistryClient = SchemaRegistryClient.new_client(
                {"url": settings.url, **settings.properties}
            )
        except (ValueError, TypeError) as error:
            raise UsageError(f"schema_registry: {error}", hint="headwater check") from error

    def latest(self, subject: str) -> str | None:
        """Return the newest schema of a subject; None: there is none."""
        try:
            found: Any = self._client.get_latest_version(subject)
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                return None
            raise _failure(error, subject) from error
        except Exception as error:
            raise TransientError(f"the schema registry does not answer: {error}", hint="headwater check") from error
        return found.schema.schema_str  # type: ignore[no-any-return]

    def register(self, subject: str, schema: str, kind: str) -> int:
        """Register a schema and return its ID."""
        try:
            return int(self._client.register_schema(subject, Schema(schema, kind)))
        except SchemaRegistryError as error:
            raise _failure(error, subject) from error
        except Exception as error:
            raise TransientError(f"the schema registry does not answer: {error}", hint="headwater check") from error


def _failure(error: SchemaRegistryError, subject: str) -> Exception:
    if error.http_status_code in {INCOMPATIBLE, 422}:
        return IncompatibleError(f"the schema registry refuses the schema of {subject}: {error.error_message}")
    return TransientError(f"the schema registry: {error.error_message}", hint="headwater check")
