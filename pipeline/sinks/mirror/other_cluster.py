"""The other Kafka cluster of a mirror: its topics, its producers, and the positions that it keeps for the mirror."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from pipeline.errors import FatalError, HeadwaterError, TransientError
from pipeline.limits import MESSAGE_MAX
from pipeline.settings.sinks import MirrorSettings
from pipeline.topics.admin import admin, look, silent
from pipeline.topics.names import Topic
from pipeline.transport import clients
from pipeline.transport.logs import UNKNOWN, Log, logs_of

OTHER_CLUSTER_TIMEOUT_S = 20.0
"""Seconds that one call to the cluster may take."""
FORBIDDEN = {
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - documented names of the codes
    KafkaError._SSL,  # noqa: SLF001
}
"""What does not pass by itself."""


class MirrorPosition(NamedTuple):
    """How far a partition is there."""

    offset: int
    """Of this cluster: everything before it is there."""
    refused: frozenset[int] = frozenset()
    """Offsets of the last transaction's records that were left out: the cluster refuses them."""
    log: Log = UNKNOWN
    """The log, here, that the offsets are of; `UNKNOWN` for a position of an earlier version, or one that was set by hand."""
    there: Log = UNKNOWN
    """The log that the records went to; likewise."""


class OtherCluster:
    """Clients of the other cluster. Each question has a handle of its own: see pipeline/transport/questions.py."""

    def __init__(self, settings: MirrorSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._refusal = ""
        """Why a broker has refused us, in its words: the calls themselves only say that time is up."""

    def __str__(self) -> str:
        return self._settings.bootstrap_servers

    def look(self, topics: list[Topic], *, make: bool = True) -> str:
        """Make the topics that are missing, if they are to be made, and return the cluster's ID, or ''.

        Raises FatalError when it does not answer, or one of the topics has another number of partitions.
        """
        client = admin(self._settings.conf)
        try:
            found = look(client, topics)
            cluster = client.list_topics(timeout=OTHER_CLUSTER_TIMEOUT_S).cluster_id
        except HeadwaterError as error:
            raise FatalError(f"the other cluster, {self}: {error.message}", hint=self._hint) from error
        for topic in found:
            if topic.partitions not in {0, topic.wanted.partitions}:
                raise FatalError(
                    f"the topic {topic.wanted.name} of {self} has {topic.partitions} partitions, and here it has "
                    f"{topic.wanted.partitions}: the order of an item would be lost",
                    hint=f"mirrors.topic names another one; or kafka-topics.sh --delete --topic {topic.wanted.name}",
                )
        new = [
            NewTopic(
                topic.wanted.name,
                num_partitions=topic.wanted.partitions,
                replication_factor=self._settings.replication_factor,
                config=dict(topic.wanted.config),
            )
            for topic in found
            if make and not topic.partitions
        ]
        for name, future in (
            client.create_topics(new, operation_timeout=OTHER_CLUSTER_TIMEOUT_S) if new else {}
        ).items():
            try:
                future.result(OTHER_CLUSTER_TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise FatalError(
                        f"the topic {name} cannot be created in {self}: {error.args[0].str()}",
                        hint=f"mirrors.replication_factor; or create it yourself: kafka-topics.sh --create --topic {name} "
                        f"--partitions {topics[0].partitions}",
                    ) from error
        return str(cluster or "")

    def producer(self, name: str, on_error: Callable[[KafkaError], None], **more: Any) -> Producer:
        """Return a producer with this transactional ID, whose former one is fenced off and what it left decided."""

        def note(error: KafkaError) -> None:
            self._note(error)
            on_error(error)

        conf = {
            **clients.TUNED,
            "message.max.bytes": MESSAGE_MAX,
            "transaction.timeout.ms": 60_000,
            **self._settings.conf,
            **more,
            "error_cb": note,
        }
        producer = clients.transactional(conf, name, OTHER_CLUSTER_TIMEOUT_S, logger=silent)
        self._refusal = ""  # it was another time's
        return producer

    def membership(self, group: str) -> Any:
        """Return what offsets are sent with: nobody is a member of the group, the transactional IDs fence."""
        consumer = self._consumer(group)
        try:
            return consumer.consumer_group_metadata()
        finally:
            consumer.close()

    def position(self, group: str, topic: str, partition: int) -> MirrorPosition | None:
        """Return the stable position of a partition, None where the cluster knows none."""
        consumer = self._consumer(group)
        try:
            (at,) = consumer.committed([TopicPartition(topic, partition)], OTHER_CLUSTER_TIMEOUT_S)
        finally:
            consumer.close()
        if at.error is not None:
            raise KafkaException(at.error)
        return position_of(at.offset, at.metadata) if at.offset >= 0 else None

    def log_of(self, topic: str) -> Log:
        """Return the log of a topic there, `UNKNOWN` while there is none; raise KafkaException when it does not answer."""
        if self._client is None:
            self._client = admin(self._settings.conf)
        return logs_of(self._client, [topic]).get(topic, UNKNOWN)

    def holds(self, topic: str, partition: int, header: tuple[str, bytes]) -> bool:
        """Say whether a partition holds a record with this header; it is read from its beginning."""
        consumer = self._consumer(f"{topic}.look")
        try:
            at = TopicPartition(topic, partition)
            low, high = consumer.get_watermark_offsets(at, OTHER_CLUSTER_TIMEOUT_S)
            consumer.assign([TopicPartition(topic, partition, low)])
            while low < high:
                for record in consumer.consume(5_000, 0.5):  # it waits for so many, or so long
                    if (error := record.error()) is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001
                        raise KafkaException(error)
                    if error is None and header in cast("list[Any]", record.headers() or []):
                        return True
                    low = max(low, cast("int", record.offset()) + (error is None))
        finally:
            consumer.close()
        return False

    def explain(self, error: KafkaException, what: str) -> HeadwaterError:
        """Return what a failure means: to be tried again, or that we are refused permanently."""
        failure: KafkaError = error.args[0]
        refusal, self._refusal = self._refusal, ""
        if refusal or failure.code() in FORBIDDEN:
            return FatalError(f"{what}: {self} refuses this client: {refusal or failure.str()}", hint=self._hint)
        return TransientError(f"{what}: {self}: {failure.str()}")

    @property
    def _hint(self) -> str:
        return "headwater check ([[mirrors]] bootstrap_servers, [mirrors.properties])"

    def _consumer(self, group: str) -> Consumer:
        conf = {**self._settings.conf, "error_cb": self._note}
        return clients.consumer(conf, group, logger=silent, enable_partition_eof=True)  # a pending offset is waited for

    def _note(self, error: KafkaError) -> None:
        if error.code() in {KafkaError._AUTHENTICATION, KafkaError._SSL}:  # noqa: SLF001
            self._refusal = error.str()


def metadata_of(position: MirrorPosition) -> str:
    """Return the metadata of a position: the offsets that were left out, and the logs. An earlier version reads the former."""
    logs = [f"{name}={log}" for name, log in (("log", position.log), ("there", position.there)) if log != UNKNOWN]
    return ",".join([*map(str, sorted(position.refused)), *logs])


def position_of(offset: int, metadata: str | None) -> MirrorPosition:
    """Return a position; one that was set by hand has no metadata."""
    words = (metadata or "").split(",")
    logs = dict(word.split("=", 1) for word in words if "=" in word)
    refused = frozenset(int(word) for word in words if word.isdecimal())
    return MirrorPosition(offset, refused, Log.parse(logs.get("log")), Log.parse(logs.get("there")))
