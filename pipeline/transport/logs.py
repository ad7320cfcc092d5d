"""Which log a position is in: an offset means something in one topic of one cluster, and nothing in another of the same name.

Kafka gives every cluster an ID and, since version 2.8, every topic one: a recreated topic has another.
Brokers without topic IDs say nothing but the cluster: there a recreated topic is noticed by offsets beyond its end alone.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from pipeline.transport import clients

NO_ID = {"", "AAAAAAAAAAAAAAAAAAAAAA"}
"""What stands for a topic without an ID."""
LOGS_TIMEOUT_S, ASK_TIMEOUT = 20.0, 5.0
GONE = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_TOPIC_ID}


class Log(NamedTuple):
    """A topic of a cluster, and no other one of the same name."""

    cluster: str = ""
    """The cluster's ID; '' where it gives none, or where the position was kept by a version that did not know it."""
    topic_id: str = ""
    """The topic's ID, 22 characters, URL-safe; '' likewise."""

    def __str__(self) -> str:
        """Return it as it is kept: beside committed offsets, in state, in names of files and properties."""
        return f"{self.cluster}/{self.topic_id}" if self != UNKNOWN else ""

    @classmethod
    def parse(cls, text: str | None) -> Log:
        """Return the log of a text; `UNKNOWN` for anything else: somebody else's, or that of an earlier version."""
        cluster, slash, topic_id = (text or "").partition("/")
        return cls(cluster, topic_id) if slash and " " not in topic_id else UNKNOWN

    def may_be(self, other: Log) -> bool:
        """Say whether two are the same as far as both are known."""
        pairs = ((self.cluster, other.cluster), (self.topic_id, other.topic_id))
        return all(mine == theirs or not mine or not theirs for mine, theirs in pairs)

    def difference(self, now: Log) -> str:
        """Say in words how this log, which a position was kept with, differs from the one that is there now."""
        if self.topic_id and now.topic_id and self.topic_id != now.topic_id:
            what = f"the topic was ID {self.topic_id} and is {now.topic_id} now: it was recreated"
            elsewhere = bool(self.cluster and now.cluster and self.cluster != now.cluster)
            return f"{what}, on another cluster ({now.cluster}, not {self.cluster})" if elsewhere else what
        return f"the cluster was {self.cluster} and is {now.cluster} now"


UNKNOWN = Log()


def logs_of(client: AdminClient, topics: Iterable[str], *, timeout: float = LOGS_TIMEOUT_S) -> dict[str, Log]:
    """Return the logs of the topics that exist, by name; blocks. Raises KafkaException when the cluster does not answer."""
    names = sorted(set(topics))
    cluster = str(client.describe_cluster(request_timeout=timeout).result(timeout).cluster_id or "")
    return {name: Log(cluster, topic_id) for name, topic_id in topic_ids(client, names, timeout=timeout).items()}


class Pinned:
    """The logs that a worker began with, compared with those that are there now. In one thread."""

    def __init__(self, conf: Mapping[str, Any], log_of: Callable[[str], Log]) -> None:
        self._conf, self._log_of = conf, log_of
        self._client: AdminClient | None = None

    def ask(self, topics: Iterable[str]) -> Callable[[], str]:
        """Ask for the topics' IDs; the function returned waits for the answer and says what differs, or ''.

        No answer says nothing: what comes next will fail, or ask again.
        """
        if self._client is None:
            self._client = clients.admin(self._conf)
        pinned = {topic: log for topic in topics if (log := self._log_of(topic)).topic_id}
        asked: Mapping[str, Any] = (
            self._client.describe_topics(TopicCollection(sorted(pinned)), request_timeout=ASK_TIMEOUT) if pinned else {}
        )

        def answer() -> str:
            for topic, future in asked.items():
                try:
                    topic_id = url_safe(str(future.result(ASK_TIMEOUT).topic_id))
                except KafkaException as error:
                    if error.args[0].code() in GONE:
                        return f"the topic {topic} was deleted while this worker ran"
                    self._client = None  # after the death of a broker one was seen that never answers
                    continue
                except concurrent.futures.TimeoutError:
                    self._client = None
                    continue
                if topic_id not in {*NO_ID, pinned[topic].topic_id}:
                    now = pinned[topic]._replace(topic_id=topic_id)
                    return f"the topic {topic} changed while this worker ran: {pinned[topic].difference(now)}"
            return ""

        return answer


def url_safe(topic_id: str) -> str:
    """Return a topic's ID as Kafka's own tools write it: librdkafka writes `+` and `/` for `-` and `_`."""
    return topic_id.replace("+", "-").replace("/", "_")


def topic_ids(client: AdminClient, topics: Iterable[str], *, timeout: float = LOGS_TIMEOUT_S) -> dict[str, str]:
    """Return the IDs of the topics that exist, by name, '' where the broker gives none; blocks."""
    names, found = sorted(set(topics)), dict[str, str]()
    asked: Mapping[str, Any] = client.describe_topics(TopicCollection(names), request_timeout=timeout) if names else {}
    for name, future in asked.items():
        try:
            topic_id = url_safe(str(future.result(timeout).topic_id))
        except KafkaException as error:
            if error.args[0].code() not in GONE:
                raise
        else:
            found[name] = "" if topic_id in NO_ID else topic_id
    return found
