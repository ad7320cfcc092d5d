"""The Schema Registry, by confluent-kafka's own client. Blocks; in the transaction's thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.errors import TransientError, UsageError
from pipeline.settings.kafka import RegistrySettings
from pipeline.steps.formats.registered import IncompatibleError, OvertakenError

INCOMPATIBLE = 409
REGISTRY_TIMEOUT_S = 10
"""Seconds until an answer; the client itself would wait forever."""


class SchemaRegistry:
    """See `steps.formats.registered.Registry`."""

    def __init__(self, settings: RegistrySettings) -> None:
        try:
            self._client: Any = SchemaRegistryClient.new_client(
                {"url": settings.url, "timeout": REGISTRY_TIMEOUT_S, **settings.properties}
            )
        except (ValueError, TypeError) as error:
            raise UsageError(f"schema_registry: {error}", hint="headwater check") from error
        self._seen: dict[str, int] = {}
        """By subject, the newest version that was seen."""

    def latest(self, subject: str) -> str | None:
        """Return the newest schema of a subject; None: there is none."""
        self._client.clear_latest_caches()  # else the client repeats its first answer forever
        found = _asked(partial(self._client.get_latest_version, subject), subject)
        if found is None:
            return None
        self._seen[subject] = found.version
        return found.schema.schema_str  # type: ignore[no-any-return]

    def register(self, subject: str, schema: str, kind: str) -> int:
        """Register a schema and return its ID.

        The registry has no compare-and-set: the version that the schema got tells whether another came in between.
        """
        wanted = Schema(schema, kind)
        number = _asked(partial(self._client.register_schema, subject, wanted), subject)
        found = _asked(partial(self._client.lookup_schema, subject, wanted), subject)
        if number is None or found is None:
            raise TransientError(f"the schema registry lost the schema of {subject}", hint="headwater check")
        between = range(self._seen.get(subject, 0) + 1, found.version)
        asked = [_asked(partial(self._client.get_version, subject, version), subject) for version in between]
        others = [other.schema.schema_str for other in asked if other is not None]
        self._seen[subject] = max(self._seen.get(subject, 0), found.version)
        if others:
            raise OvertakenError(found.schema.schema_str, others)
        return int(number)


def _asked(ask: Callable[[], Any], subject: str) -> Any:
    """Return what the registry answers; None: there is no such thing."""
    try:
        return ask()
    except SchemaRegistryError as error:
        if error.http_status_code == 404:
            return None
        raise _failure(error, subject) from error
    except Exception as error:
        raise TransientError(f"the schema registry does not answer: {error}", hint="headwater check") from error


def _failure(error: SchemaRegistryError, subject: str) -> Exception:
    if error.http_status_code in {INCOMPATIBLE, 422}:
        return IncompatibleError(f"the schema registry refuses the schema of {subject}: {error.error_message}")
    return TransientError(f"the schema registry: {error.error_message}", hint="headwater check")
