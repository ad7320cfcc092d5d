"""`headwater flows apply`: publishes flows as a version that all workers switch to; and what is known of versions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import FatalError, UsageError
from pipeline.flows.check import examine
from pipeline.flows.versions import KEY, Version, Versions, dump, encode, flow_versions, text_of
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure, look, silent
from pipeline.topics.group import client_ids
from pipeline.topics.names import Topics
from pipeline.topics.read import reading
from pipeline.transport import clients

APPLY_TIMEOUT_S = 20.0


def versions(settings: Settings) -> Versions:
    """Read the flows topic; raise FatalError when the cluster cannot be reached."""
    topics = Topics(settings)
    (found,) = look(admin(settings.kafka.conf), [topic for topic in topics.all() if topic.name == topics.flows])
    with reading(settings) as consumer:
        return flow_versions(consumer, topics.flows, found.partitions)


def validate(settings: Settings, file: Path) -> list[str]:
    """Return what may be wrong with the flows; raise UsageError for the first that is wrong, or when there are none."""
    if not settings.flows:
        raise UsageError(f"{file}: there are no [[flows]]", hint="docs/how-to/write-a-flow.md")
    return [warning for flow in settings.flows for warning in examine(settings, flow)]


def apply(settings: Settings) -> tuple[Version, bool]:
    """Publish the flows of the settings, once they are validated; return the version, and whether it is new.

    The topics that they need are made before.
    """
    flows = settings.flows
    topics = Topics(settings)
    ensure(admin(settings.kafka.conf), topics.all(), settings.kafka.replication_factor)
    applied = versions(settings).applied
    if applied.number and text_of(flows) == text_of_version(applied):
        return applied, False
    version = Version(applied.number + 1, time.time(), dump(flows))
    failures: list[str] = []
    producer = clients.producer(settings.kafka.conf, logger=silent)
    producer.produce(
        topics.flows,
        encode(version),
        KEY,
        0,
        on_delivery=lambda error, _: failures.append(f"{error}") if error else None,
    )
    if producer.flush(APPLY_TIMEOUT_S) or failures:
        raise FatalError(f"the topic {topics.flows} cannot be written: {', '.join(failures) or 'it timed out'}")
    return version, True


def text_of_version(version: Version) -> str:
    """Return a version's flows in the form of `text_of`."""
    return json.dumps(version.flows, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Uptake:
    """How far the workers are with a version."""

    taken: list[str]
    waiting: list[str]
    refused: dict[str, str]


def uptake(settings: Settings, version: Version) -> Uptake:
    """Return which workers of the group run a version."""
    said = versions(settings).workers
    found = Uptake([], [], {})
    for client in client_ids(settings):
        if (worker := said.get(client)) is None:
            continue  # it runs no flows
        if worker.version >= version.number:
            found.taken.append(client)
        elif worker.refused.startswith(f"version {version.number}:"):
            found.refused[client] = worker.refused
        else:
            found.waiting.append(client)
    return found


def wait(
    settings: Settings, version: Version, seconds: float, *, pause: Callable[[float], object] = time.sleep
) -> Uptake:
    """Wait until every worker has taken a version up or refused it, so many seconds at most."""
    deadline = time.monotonic() + seconds
    while (found := uptake(settings, version)).waiting and time.monotonic() < deadline:
        pause(0.3)
    return found
