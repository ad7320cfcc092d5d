"""What a worker's consumer and producer share: clients' settings, the transaction, participants, topics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import __version__ as confluent_version
from confluent_kafka.cimpl import NewTopic
from faust.transport import base
from mode.utils.times import want_seconds

from pipeline.limits import MESSAGE_MAX
from pipeline.transport import clients
from pipeline.transport.fatal import stop_process
from pipeline.transport.logs import UNKNOWN, Log
from pipeline.transport.participant import Participant, Source, is_virtual
from pipeline.transport.questions import Questions
from pipeline.transport.starts import LostRecords
from pipeline.transport.transaction import Transaction

TIME_OUTS = {"session.timeout.ms", "heartbeat.interval.ms"}
"""Consumer properties that are settings of ours, or the broker's: those that come with a client.properties do not count."""


@dataclass(frozen=True)
class Mapped:
    """What the settings of an app say in librdkafka's words, for all clients, for consumers and for producers."""

    all: Mapping[str, Any] = field(default_factory=dict)
    consumer: Mapping[str, Any] = field(default_factory=dict)
    producer: Mapping[str, Any] = field(default_factory=dict)


class BaseTransport(base.Transport):
    """What a worker's consumer, producer and participants share.

    Set before the worker starts:

    - `properties`: any librdkafka property, for every client;
    - `slice_seconds`: how much work one transaction holds, three times as much with a backlog;
    - `exactly_once`; False: at least once, without transactions;
    - `message_max`: bytes of a record that may be written;
    - `group_protocol`: classic, or consumer (KIP-848);
    - `renews`: topics whose readers begin again when they were recreated, because what they write names the log; others stop;
    - `tell_loss` writes down, in the slice, what retention has taken unread;
    - `leaves_out`: whether a record may be left out for an error, because its agent writes away what comes with an `error`;
      else the worker stops;
    - `add_participant`: state and sources.
    """

    default_port = 9092
    driver_version = f"confluent-kafka={confluent_version}"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.properties: Mapping[str, Any] = {}
        self.mapped = Mapped()
        self.tells_url = False
        """Whether the group is told, behind the client ID, where this worker's pages are: others ask it for keys of tables."""
        self.slice_seconds = 0.1
        self.exactly_once = True
        self.message_max = MESSAGE_MAX
        self.group_protocol = "classic"
        self.logs: dict[str, Log] = {}
        self.renews: set[str] = set()
        self.leaves_out: Callable[[Exception], bool] = lambda _error: False
        self.doing = ""
        """What the agents' thread works on, in words, for who waits for it."""
        self.tell_loss: Callable[[LostRecords], None] = lambda _lost: None
        self._transaction: Transaction | None = None

    @property
    def transaction(self) -> Transaction:
        """The worker's transaction; made at first use, when the properties are known."""
        if self._transaction is None:
            self._transaction = Transaction(
                {**self.mapped.producer, **self.client_conf()},
                self.app.conf.datadir,
                self.app.conf.id,
                exactly_once=self.exactly_once,
                log_of=self.log_of,
                message_max=self.message_max,
            )
        return self._transaction

    @property
    def participants(self) -> list[Participant]:
        """What follows the slices, in the order in which it joined."""
        return self.transaction.participants

    @property
    def sources(self) -> list[Source]:
        """The participants that are sources."""
        return [participant for participant in self.participants if isinstance(participant, Source)]

    def log_of(self, topic: str) -> Log:
        """Return the log that a topic was when this worker subscribed to it; `UNKNOWN` for others."""
        return self.logs.get(topic, UNKNOWN)

    def add_participant(self, participant: Participant) -> None:
        """Let state or a source follow the slices."""
        self.transaction.participants.append(participant)

    def client_conf(self) -> dict[str, Any]:
        """Return what every client gets."""
        servers = ",".join(f"{url.host}:{url.port or self.default_port}" for url in self.url)
        return {
            "bootstrap.servers": servers,
            "client.id": self.app.conf.broker_client_id,
            **self.mapped.all,
            **self.properties,
        }

    def producer_conf(self) -> dict[str, Any]:
        """Return what a producer of single records gets: a few, sent at once, where Java clients put them."""
        return {
            "compression.type": "zstd",
            "message.max.bytes": self.message_max,
            **self.mapped.producer,
            **self.client_conf(),
            "partitioner": "murmur2_random",
        }

    def consumer_conf(self) -> dict[str, Any]:
        """Return what the group's consumer gets."""
        conf = self.app.conf
        static = {"group.instance.id": conf.consumer_group_instance_id} if conf.consumer_group_instance_id else {}
        properties = {name: value for name, value in self.client_conf().items() if name not in TIME_OUTS}
        return {
            **self.mapped.consumer,
            **properties,
            **static,
            **self._group_conf(),
            **({"client.id": f"{conf.broker_client_id} {conf.canonical_url}"} if self._is_asked() else {}),
            "group.id": conf.id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",  # where to read from is decided, see pipeline/transport/starts.py
            "isolation.level": "read_committed",
            "enable.partition.eof": bool(self.app.tables),
            "fetch.queue.backoff.ms": 20,  # a paused partition throws its prefetch away: come back soon
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 16_384,
        }

    def _is_asked(self) -> bool:
        conf = self.app.conf
        return bool(self.tells_url and self.app.tables and conf.web_enabled and conf.web_tables_enabled)

    def _group_conf(self) -> dict[str, Any]:
        """Return how partitions are assigned: by `range`, so that equal numbers of all topics meet on one worker."""
        if self.group_protocol == "consumer":
            return {"group.protocol": "consumer", "group.remote.assignor": "range"}  # the broker sets the time-outs
        return {
            "partition.assignment.strategy": "range",
            "session.timeout.ms": int(self.app.conf.broker_session_timeout * 1000),
            "heartbeat.interval.ms": int(self.app.conf.broker_heartbeat_interval * 1000),
        }

    def questions(self) -> Questions:
        """Return a way to ask the broker without disturbing the consumer."""
        return Questions(self.client_conf(), self.app.conf.id)

    async def create_topic(
        self,
        topic: str,
        partitions: int,
        replication: int,
        *,
        config: Mapping[str, Any] | None = None,
        timeout: Any = 30.0,
        retention: Any = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        ensure_created: bool = False,
    ) -> None:
        """Create a topic as Faust asks for it, if it is missing."""
        if not self.app.conf.topic_allow_declare or is_virtual(topic):
            return
        settings = {name: str(value) for name, value in (config or {}).items()}
        policy = ",".join(name for name, wanted in (("compact", compacting), ("delete", deleting)) if wanted)
        if policy:
            settings.setdefault("cleanup.policy", policy)
        if retention:
            settings.setdefault("retention.ms", str(int(want_seconds(retention) * 1000)))

        def create() -> None:
            admin = clients.admin(self.client_conf())
            if topic in admin.list_topics(timeout=10).topics:
                return
            new = NewTopic(topic, num_partitions=partitions, replication_factor=replication, config=settings)
            try:
                admin.create_topics([new])[topic].result(float(want_seconds(timeout)))
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS or ensure_created:
                    stop_process(f"the topic {topic} cannot be created: {error.args[0].str()}", hint="headwater check")

        await asyncio.to_thread(create)
