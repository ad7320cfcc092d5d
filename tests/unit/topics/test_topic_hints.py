"""What is said where a topic cannot be created: each refusal has a hint that fits its cause."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from pipeline.limits import HEADROOM
from pipeline.settings.root import Settings
from pipeline.topics.admin import Allowed, TopicRefusedError, TopicState
from pipeline.topics.names import MAX_BYTES, Topic, Topics

CAUSES = {
    KafkaError.INVALID_REPLICATION_FACTOR: "kafka.replication_factor",
    KafkaError.INVALID_PARTITIONS: "partitions, in headwater.toml",
    KafkaError.TOPIC_EXCEPTION: "prefix, in headwater.toml",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "allow this user to create topics",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "allow this user to create topics",
    KafkaError.POLICY_VIOLATION: "the cluster has a policy for new topics: kafka.max_message_bytes",
    KafkaError.INVALID_CONFIG: "kafka.max_message_bytes",
}


@pytest.mark.parametrize("code", CAUSES)
def test_a_refused_topic_says_what_to_do_about_its_cause(code: int) -> None:
    error = TopicRefusedError("p.raw", KafkaError(code, "in the words of the broker"))
    assert error.message == "the topic p.raw cannot be created: in the words of the broker"
    assert error.hint.startswith(CAUSES[code])


def test_the_size_of_records_is_named_where_it_can_be_the_cause_alone() -> None:
    naming = {code for code in CAUSES if "max_message_bytes" in TopicRefusedError("t", KafkaError(code)).hint}
    assert naming == {KafkaError.POLICY_VIOLATION, KafkaError.INVALID_CONFIG}
    replicas = {code for code in CAUSES if "replication_factor" in TopicRefusedError("t", KafkaError(code)).hint}
    assert replicas == {KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.POLICY_VIOLATION}


def test_any_other_refusal_names_the_command_that_looks_at_everything() -> None:
    assert TopicRefusedError("t", KafkaError(KafkaError.NOT_CONTROLLER)).hint == "headwater check"


@pytest.mark.parametrize(
    ("code", "is_for_its_name"),
    [
        (KafkaError.TOPIC_EXCEPTION, True),
        (KafkaError.POLICY_VIOLATION, True),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, False),
        (KafkaError.INVALID_REPLICATION_FACTOR, False),
    ],
)
def test_a_name_that_is_refused_is_one_changes_error_and_all_else_is_the_workers(
    code: int, is_for_its_name: bool
) -> None:
    assert TopicRefusedError("t", KafkaError(code)).is_for_its_name is is_for_its_name


def test_topics_that_take_more_than_a_change_can_do_without() -> None:
    topics = {topic.name: topic for topic in Topics(Settings()).all()}
    most = Settings().kafka.max_message_bytes
    assert {topic.needed for topic in topics.values()} == {most}
    larger = {name.partition(".")[2] for name, topic in topics.items() if int(topic.config[MAX_BYTES]) > most}
    assert larger == {"dead-letter", "retry", "flow-state"}
    for size, is_warned_of in ((most + HEADROOM, False), (most, False), (most - 1, True)):
        warned = {name for name, topic in topics.items() if TopicState(topic, 1, size).warning}
        assert warned == (set(topics) if is_warned_of else set())


def test_a_topic_whose_size_is_not_known_is_not_warned_of() -> None:
    assert TopicState(Topic("t", 1, "", {MAX_BYTES: "100"}), 1, None).warning == ""


def test_what_a_cluster_allows_is_said_where_it_is_less_than_is_needed() -> None:
    assert not Allowed()
    assert not Allowed(100, 100)
    assert str(Allowed(1 << 20, 2 << 20)).startswith("The cluster allows records of 1,048,576 bytes at most")
