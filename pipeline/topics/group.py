"""Who is in a consumer group."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.retry import kafka_says, within
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin
from pipeline.topics.read import READ_TIMEOUT_S

STARTING = {
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
}
"""What a broker answers about a group while its coordinators come up, as they do when it is asked for the first time."""


def client_ids(settings: Settings) -> list[str]:
    """Return the client IDs of the workers that are there."""
    return members_of(admin(settings.kafka.conf), settings.prefix)


def members_of(client: AdminClient, group: str) -> list[str]:
    """Return the client IDs of the members of a group; none when there is no such group."""

    def ask() -> list[str]:
        members = client.describe_consumer_groups([group], request_timeout=READ_TIMEOUT_S)[group].result().members
        return sorted(member.client_id for member in members)

    try:
        return within(READ_TIMEOUT_S, kafka_says(STARTING))(ask)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return []
        raise
