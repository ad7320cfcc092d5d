"""Who is in a consumer group."""

from __future__ import annotations

import time

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.settings.root import Settings
from pipeline.topics.admin import admin
from pipeline.topics.read import TIMEOUT

STARTING = {
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
}
"""What a broker answers about a group while its coordinators come up, as they do when it is asked for the first time."""


def clients(settings: Settings) -> list[str]:
    """Return the client IDs of the workers that are there."""
    return _members(admin(settings.kafka.conf), settings.prefix)


def _members(client: AdminClient, group: str) -> list[str]:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            members = client.describe_consumer_groups([group], request_timeout=TIMEOUT)[group].result().members
            return sorted(member.client_id for member in members)
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            if code not in STARTING or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
