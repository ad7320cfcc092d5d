"""What agents are attached to: a worker with its app, its topics, its metrics and its dead letters."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import mode
import msgspec
from confluent_kafka import KafkaException
from faust import Stream
from faust.types import TP

from models.dead_letter import DeadLetter, Headers
from models.gap import Gap
from pipeline.errors import FatalError, HeadwaterError, RejectedError, TransientError, backoff
from pipeline.files.private import private_directory
from pipeline.limits import HEADROOM, spare_the_collector
from pipeline.metrics.worker_metrics import Metrics
from pipeline.runtime.entry_points import wanted_agents
from pipeline.runtime.faust_app import App, QuietWorker, Tables
from pipeline.runtime.offsets import require_remembered
from pipeline.settings.root import Settings
from pipeline.state.table import Table
from pipeline.topics.admin import TopicRefusedError, UnreachableError, admin, ensure
from pipeline.topics.names import Topics
from pipeline.topics.read import read_topic
from pipeline.transport import Batch, BatchSchema, Transport, batches, clients
from pipeline.transport.consumer import Consumer
from pipeline.transport.starts import LostRecords

T = TypeVar("T")
Preflight = Callable[[], None]
AGAIN = "again"
"""Holds partitions whose batch is to be tried again."""
HEARTBEAT_S = 0.3
"""Seconds between two heartbeats at most."""


class Worker:
    """What an agent is attached to: the app, the settings, the names of the topics, and ways to write."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics = Topics(settings)
        self.metrics = Metrics()
        self.preflights: list[Preflight] = []
        self.at_end: list[Callable[[], None]] = []
        """Called when the worker has stopped."""
        self.pause_reasons: list[Callable[[], Mapping[str, str]]] = []
        """Tell what is paused, and why: it makes the worker not ready."""
        self.app = App(
            settings.group,
            broker=[f"headwater://{server.strip()}" for server in settings.kafka.bootstrap_servers.split(",")],
            datadir=str(settings.state_dir),
            value_serializer="raw",
            key_serializer="raw",
            topic_partitions=settings.partitions,
            topic_disable_leader=True,
            # It tells the workers of a group apart, in the broker's own lists as well.
            broker_client_id=f"{settings.group}-{socket.gethostname()}-{os.getpid()}",
            broker_session_timeout=settings.kafka.session_timeout,
            # A worker hears of a rebalance in the answer to a heartbeat, and until then partitions are idle.
            broker_heartbeat_interval=min(settings.kafka.session_timeout / 5, HEARTBEAT_S),
            consumer_group_instance_id=settings.kafka.instance_id,
            agent_supervisor=mode.CrashingSupervisor,
            web_enabled=settings.web.enabled,
            web_bind=settings.web.host,
            web_host=settings.web.host,
            web_port=settings.web.port,
            stream_wait_empty=True,
            store="headwater://",
            Table=Table,
            TableManager=Tables,
            Worker=QuietWorker,
            table_standby_replicas=settings.standby_replicas,
        )
        self.app.worker, self.app.web_wanted = self, settings.web.enabled
        self.app.prepare, self.app.at_end = self.prepare, self.at_end
        self._failures: dict[TP | None, int] = {}
        """By partition, how often in a row its batch could not be done yet."""
        self.transport = cast("Transport", self.app.transport)
        self.transport.properties = settings.kafka.properties
        self.transport.group_protocol = settings.kafka.group_protocol
        self.transport.slice_seconds = settings.commit_interval
        self.transport.exactly_once = settings.processing_guarantee == "exactly_once"
        self.transport.message_max = settings.kafka.max_message_bytes + HEADROOM
        self.transport.tell_loss = self.write_gap
        self.transport.leaves_out = partial(becomes_dead_letter, settings)
        self.transport.transaction.record_max = settings.kafka.max_message_bytes
        self.transport.add_participant(self.metrics)

    def prepare(self) -> None:
        """Make missing topics and look at the sources; blocks, raises HeadwaterError. Runs before the worker starts."""
        state = self.settings.state_dir
        try:
            private_directory(state)
        except OSError as error:
            raise FatalError(f"the state directory {state}: {error.strerror}", hint=f"ls -ld {state.parent}") from error
        web = self.settings.web
        if web.enabled and not _is_free(web.host, web.port):
            raise FatalError(
                f"the port {web.port} of {web.host} is in use",
                hint="HEADWATER_WEB__PORT=6067 headwater run, or --without-web",
            )
        ensure(admin(self.transport.client_conf()), self.topics.all(), self.settings.kafka.replication_factor)
        require_remembered(self.transport.client_conf(), self.settings, wanted_agents(self.settings))
        for preflight in self.preflights:
            preflight()
        spare_the_collector()

    def agent(self, name: str, *topics: str) -> Callable[[Any], Any]:
        """Declare an agent on batch-native topics. An error that it does not handle ends the worker, uncommitted."""
        channel = self.app.topic(*topics, schema=BatchSchema(), maxsize=4)
        return self.app.agent(channel, name=name)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run a step and its writing in the transaction's thread, off the event loop."""
        return await self.transport.transaction.run(self._step, function, args)

    def _step(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Do a step, and say what it works on: what is refused of what it writes is that batch's."""
        transaction = self.transport.transaction
        transaction.in_hand = next((arg for arg in args if isinstance(arg, Batch)), None)
        try:
            return function(*args)
        finally:
            transaction.in_hand, self.transport.doing = None, ""

    async def process(self, stream: Stream[Any], stage: str, function: Callable[[Any], None]) -> None:
        """Run a step on each batch of a stream. What to do when it raises is a setting: see `on_error`."""
        async for batch in batches(stream):
            if isinstance(batch, Batch) and batch.error is not None:
                await self.run(self.reject, batch, 0, stage, batch.error)
                continue
            try:
                await self.run(function, batch)
                self._failures.pop(_place(batch), None)
            except TransientError as error:
                self._try_again(batch, error)
            except FatalError:
                raise
            except KafkaException as error:
                self._try_again(batch, TransientError(f"Kafka: {error.args[0].str()}"))
            except Exception as error:
                consumer = cast("Consumer", self.app.consumer)
                can_find = isinstance(batch, Batch) and becomes_dead_letter(self.settings, error)
                if not (can_find and consumer.blame(batch, error)):
                    raise

    def _try_again(self, batch: Any, error: TransientError) -> None:
        """Have a batch processed again after a pause that grows; the other partitions continue."""
        tp = _place(batch)
        if tp is None:  # what a source offers has no place in Kafka: the slice is processed again
            self.transport.transaction.spoil(error.message)
            return
        failures = self._failures[tp] = self._failures.get(tp, 0) + 1
        consumer = cast("Consumer", self.app.consumer)
        consumer.give_up_and_hold({tp}, AGAIN, f"{batch!r} is tried again: {error}")
        self.app.loop.call_later(backoff(failures), consumer.release, {tp}, AGAIN)

    @property
    def produce(self) -> Callable[..., None]:
        """Write one record into the slice: topic, key, value, partition, headers."""
        return self.transport.transaction.produce

    @property
    def produce_batch(self) -> Callable[..., None]:
        """Write records without headers into the slice: topic, records, partition or by their keys."""
        return self.transport.transaction.produce_batch

    def require_topic(self, name: str) -> None:
        """Make a sink topic that nobody knew of before; blocks.

        Raises RejectedError for a name that Kafka does not take, TransientError when no broker answers.
        """
        try:
            ensure(
                admin(self.transport.client_conf()), [self.topics.late(name)], self.settings.kafka.replication_factor
            )
        except UnreachableError as error:
            raise TransientError(error.message, hint=error.hint) from error
        except TopicRefusedError as error:
            raise (RejectedError(error.message, hint=error.hint) if error.is_for_its_name else error) from error

    def write_gap(self, lost: LostRecords) -> None:
        """Write down, in the slice, which records of a topic retention has taken before they were read."""
        gap = Gap(
            table="",
            stream="",
            shard="",
            after=None,
            cause="retention",
            at=round(time.time(), 3),
            topic=lost.tp.topic,
            partition=lost.tp.partition,
            first=lost.first,
            last=lost.end - 1,
            count=lost.end - lost.first,
            log=str(lost.log),
            group=lost.group,
            until=self._time_of(lost),
        )
        self.produce(self.topics.gaps, lost.tp.topic.encode(), msgspec.json.encode(gap), 0)
        self.metrics.count(self.metrics.gaps, 1, gap.cause)

    def _time_of(self, lost: LostRecords) -> float:
        """Return the time of the first record behind a gap, in seconds since the epoch; 0 where there is none, or no answer."""
        consumer = clients.consumer(self.transport.client_conf(), self.settings.group, enable_partition_eof=True)
        try:
            found = read_topic(consumer, lost.tp.topic, {lost.tp.partition: lost.end}, 1)
        except (HeadwaterError, KafkaException):
            return 0.0
        finally:
            consumer.close()
        return found[0].timestamp()[1] / 1000 if found else 0.0

    def reject(self, batch: Batch, index: int, stage: str, error: Exception) -> None:
        """Write one message of a batch to the dead-letter topic, untouched, with the reason."""
        record = batch.records[index]
        self.write_dead_letter(
            DeadLetter(
                topic=batch.topic,
                partition=batch.partition,
                offset=cast("int", record.offset()),
                stage=stage,
                error=error,
                key=record.key(),
                value=record.value(),
                original_headers=cast("Headers", record.headers() or []),
            )
        )

    def write_dead_letter(self, letter: DeadLetter) -> None:
        """Write a dead letter into the slice; without its value where that is too large for the topic of dead letters.

        These are the ways to it:

        - `FlowOutput.reject`: a step of a flow has failed, or the flow is gone. `Resend.emit` calls it for what is sent again.
        - `Worker.reject` in `FlowRunner._given`: the record on raw is not a change.
        - `WaitingChanges.again`: one that is retried is not a change, or its seal cannot be opened.
        - `write` of agents/ingest.py: a record of a stream cannot be read, or is too large.
        - `write` of agents/deduplicate.py: a record on the ingest topic is not a change, or has no event ID.
        - `Transaction.refused`: the broker takes no record made of it. The slice is done again, and `FlowRunner._run` and
          `taken` of agents/ingest.py find it there; of other agents it is blamed on the batch.
        - `Poison`: an agent raises, until one record alone is found out. `process` sees it as `batch.error`.
        - `Carrier._reject`: a destination refuses the record.

        A replay writes its own: `_reject` in pipeline/replay/run.py.
        """
        place = letter.topic, letter.partition, letter.offset, letter.stage, letter.flow, hash(letter.value)
        topic = self.topics.dead_letter
        try:
            self.produce(topic, letter.key, letter.value, -1, letter.headers, origin=("dead letter", *place))
        except RejectedError:
            self.produce(topic, letter.key, None, -1, letter.without_value().headers)
        self.metrics.count(self.metrics.dead_letters, 1, letter.stage)


def becomes_dead_letter(settings: Settings, error: Exception) -> bool:
    """Say whether a record becomes a dead letter for an error; else the worker stops."""
    return isinstance(error, RejectedError) or settings.on_error == "dead_letter"


def _place(batch: Any) -> TP | None:
    return TP(batch.topic, batch.partition) if isinstance(batch, Batch) else None


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the web server does
        try:
            server.bind((host, port))
        except OSError:
            return False
    return True
