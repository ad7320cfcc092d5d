"""Topics in the cluster: what is there, what is created, and why a cluster refuses."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType, TopicMetadata  # type: ignore[attr-defined]  # the stub forgets
from confluent_kafka.cimpl import NewTopic

from pipeline.errors import FatalError, HeadwaterError, UsageError
from pipeline.topics.names import MAX_BYTES, Topic

log = logging.getLogger(__name__)
ADMIN_TIMEOUT_S = 20.0
CONNECT_ATTEMPT_S = 2.0
"""Seconds of one attempt to reach the cluster."""
ADMIN_PAUSE_S = 0.1
"""Seconds between two looks at topics that were made a moment ago."""
SMALLER = (8 << 20, 4 << 20, 2 << 20, 1_048_588)
"""What is tried in turn where a cluster refuses `max.message.bytes`; the last is Kafka's default."""
HINTS = {
    KafkaError.INVALID_REPLICATION_FACTOR: "kafka.replication_factor must not exceed the number of brokers; headwater check",
    KafkaError.INVALID_PARTITIONS: "partitions, in headwater.toml",
    KafkaError.TOPIC_EXCEPTION: "prefix, in headwater.toml: letters, digits, . _ - and no other topic that differs in . and _",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "allow this user to create topics with the prefix, or create them: headwater topics",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "allow this user to create topics, or create them yourself: headwater topics",
    KafkaError.POLICY_VIOLATION: "the cluster has a policy for new topics: kafka.max_message_bytes, kafka.replication_factor; "
    "or create the topics yourself: headwater topics",
    KafkaError.INVALID_CONFIG: "kafka.max_message_bytes; or create the topic yourself: headwater topics",
}
"""What to do when a topic cannot be created, by what the cluster says."""
NAME_REFUSED = {KafkaError.TOPIC_EXCEPTION, KafkaError.POLICY_VIOLATION, KafkaError.INVALID_CONFIG}


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it is in the cluster: 0 partitions when it is missing."""

    wanted: Topic
    partitions: int
    max_bytes: int | None = None
    """`max.message.bytes` as it is; None: it was not asked for, or may not be seen."""

    @property
    def warning(self) -> str:
        """What may go wrong with it, or ''."""
        wanted = self.wanted.needed
        if self.max_bytes is None or self.max_bytes >= wanted:
            return ""
        return (
            f"the topic {self.wanted.name} takes records of {self.max_bytes:,} bytes at most (max.message.bytes), and one may "
            f"have {wanted:,}: larger ones become dead letters"
        )

    @property
    def problem(self) -> str:
        """What is wrong with it, or ''. A missing topic is fine: a worker creates it."""
        if self.partitions in {0, self.wanted.partitions}:
            return ""
        return (
            f"the topic {self.wanted.name} has {self.partitions} partitions, the settings say {self.wanted.partitions}: "
            "the number is part of the state (an event ID would be separated from its entry)"
        )


class UnreachableError(FatalError):
    """The cluster does not answer, or refuses us."""


class TopicRefusedError(FatalError):
    """A topic that cannot be created."""

    def __init__(self, name: str, error: KafkaError) -> None:
        super().__init__(
            f"the topic {name} cannot be created: {error.str()}", hint=HINTS.get(error.code(), "headwater check")
        )
        self.is_for_its_name = error.code() in NAME_REFUSED
        """Whether another topic could be made."""


class Admin(AdminClient):
    """A client for topics and groups that knows why its connections fail: the call itself only says that time is up."""

    def __init__(self, conf: Mapping[str, Any]) -> None:
        self.refusal = ""
        """Why a broker has refused us, in its words: wrong credentials, no trust in its certificate."""
        ours: dict[str, Any] = {"socket.connection.setup.timeout.ms": 5_000, "error_cb": self._note}
        super().__init__({**conf, **ours, "log_level": 0}, logger=silent)

    def _note(self, error: KafkaError) -> None:
        if error.code() in {KafkaError._AUTHENTICATION, KafkaError._SSL}:  # noqa: SLF001 - documented names of the codes
            self.refusal = error.str()


silent = logging.getLogger("headwater.librdkafka.silent")
silent.addHandler(logging.NullHandler())
silent.propagate = False


def admin(conf: Mapping[str, Any]) -> Admin:
    """Return a client for topics and groups; raise UsageError when librdkafka does not take the properties."""
    try:
        return Admin(conf)
    except (KafkaException, ValueError, TypeError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else error
        raise UsageError(f"kafka.properties: {reason}", hint="headwater check") from error


def look(client: Admin, topics: Iterable[Topic], *, timeout: float = ADMIN_TIMEOUT_S) -> list[TopicState]:
    """Return what is there of the topics; raise FatalError when the broker cannot be reached, at once when it refuses us."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            there = client.list_topics(timeout=min(CONNECT_ATTEMPT_S, timeout)).topics
        except KafkaException as error:
            client.poll(0)
            if client.refusal or time.monotonic() > deadline:
                raise unreachable(error, client.refusal) from error
        else:
            return [
                TopicState(topic, len(there[topic.name].partitions) if topic.name in there else 0) for topic in topics
            ]


def names_in(client: Admin) -> dict[str, TopicMetadata]:
    """Return all topics of the cluster by name; raise FatalError when it cannot be reached."""
    try:
        return dict(client.list_topics(timeout=ADMIN_TIMEOUT_S).topics)
    except KafkaException as error:
        client.poll(0)
        raise unreachable(error, client.refusal) from error


def look_again(client: Admin, topics: Sequence[Topic], *, timeout: float = ADMIN_TIMEOUT_S) -> list[TopicState]:
    """Return what is there when topics were made a moment ago: a broker hears of them a little later than it says so."""
    deadline = time.monotonic() + timeout
    found = look(client, topics)
    while not all(topic.partitions for topic in found) and time.monotonic() < deadline:
        time.sleep(ADMIN_PAUSE_S)
        found = look(client, topics)
    return found


def unreachable(error: KafkaException, refusal: str = "") -> HeadwaterError:
    """Return the error for a cluster that does not answer, or refuses us."""
    if refusal:
        return UnreachableError(f"Kafka refuses this client: {refusal}", hint="headwater check ([kafka.properties])")
    return UnreachableError(
        f"Kafka cannot be reached: {error.args[0].str()}",
        hint="headwater check, which names the address of kafka.bootstrap_servers; or headwater local up",
    )


def ensure(client: Admin, topics: Iterable[Topic], replication: int) -> list[str]:
    """Make the topics that are missing; return their names. Raise FatalError when one that is there differs.

    Where the cluster allows no records as large as wanted, they are made for the largest that it does, and that is logged.
    """
    found = look(client, topics)
    for problem in (topic.problem for topic in found):
        if problem:
            raise FatalError(problem, hint="set partitions to the topic's number, or drain and create new topics")
    missing = [topic.wanted for topic in found if topic.partitions == 0]
    refused = refusals(client, missing, replication)
    if any(error.code() in LIMITED for error in refused.values()):
        missing, allowed = lowered(client, missing, refused, replication)
        if allowed:
            log.warning("%s: topics are created with it. Set kafka.max_message_bytes = %d", allowed, allowed.size)
        refused = refusals(client, missing, replication)
    for name, error in refused.items():
        raise TopicRefusedError(name, error)
    return [topic.name for topic in missing]


LIMITED = {KafkaError.POLICY_VIOLATION, KafkaError.INVALID_CONFIG}
"""What a cluster says to `max.message.bytes` above its own bound."""


def refusals(
    client: Admin, topics: Sequence[Topic], replication: int, *, validate_only: bool = False
) -> dict[str, KafkaError]:
    """Make topics, or only ask whether they could be made; return what is refused, and why."""
    new = [
        NewTopic(topic.name, num_partitions=topic.partitions, replication_factor=replication, config=dict(topic.config))
        for topic in topics
    ]
    refused: dict[str, KafkaError] = {}
    asked = client.create_topics(new, operation_timeout=ADMIN_TIMEOUT_S, validate_only=validate_only) if new else {}
    for name, future in asked.items():
        try:
            future.result(ADMIN_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                refused[name] = error.args[0]
    return refused


@dataclass(frozen=True, slots=True)
class Allowed:
    """The size of records that a cluster allows, where that is less than is wanted."""

    size: int = 0
    """0: as much as is wanted, or it is not known."""
    wanted: int = 0

    def __bool__(self) -> bool:
        return 0 < self.size < self.wanted

    def __str__(self) -> str:
        return f"The cluster allows records of {self.size:,} bytes at most ({MAX_BYTES}), not of {self.wanted:,}"


def lowered(
    client: Admin, topics: Sequence[Topic], refused: Mapping[str, KafkaError], replication: int
) -> tuple[list[Topic], Allowed]:
    """Return the topics with the largest records that the cluster allows, when it has refused some, and what it allows."""
    name, error = next((name, error) for name, error in refused.items() if error.code() in LIMITED)
    (probe,) = [topic for topic in topics if topic.name == name]
    wanted, needed = int(probe.config.get(MAX_BYTES, 0)), max(topic.needed for topic in topics)
    said = [int(word) for word in re.findall(r"\d{6,}", error.str())]  # Confluent Cloud names its bound
    for size in sorted({size for size in (*said, needed, *SMALLER) if 0 < size < wanted}, reverse=True):
        smaller = _with_size(probe, size)
        if not refusals(client, [smaller], replication, validate_only=True):
            return [_with_size(topic, size) for topic in topics], Allowed(size, needed)
    return list(topics), Allowed()


def _with_size(topic: Topic, size: int) -> Topic:
    return replace(topic, config={**topic.config, MAX_BYTES: str(min(size, int(topic.config.get(MAX_BYTES, size))))})


def sized(client: Admin, found: Sequence[TopicState]) -> list[TopicState]:
    """Return topics with the size of the records that they take, where that may be seen; blocks."""
    there = [ConfigResource(ResourceType.TOPIC, topic.wanted.name) for topic in found if topic.partitions]
    sizes: dict[str, int] = {}
    for resource, future in (client.describe_configs(there, request_timeout=ADMIN_TIMEOUT_S) if there else {}).items():
        with suppress(KafkaException):  # no permission to see it
            sizes[resource.name] = int(future.result(ADMIN_TIMEOUT_S)[MAX_BYTES].value)
    return [replace(topic, max_bytes=sizes.get(topic.wanted.name)) for topic in found]
