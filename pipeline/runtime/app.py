"""Builds the Faust app: settings in, app out. Nothing here connects; that happens when the worker starts."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

import faust
import mode
import msgspec
from confluent_kafka import KafkaException
from faust import Stream
from faust.tables.manager import TableManager
from faust.types import TP
from mode import ServiceT

from models.dead_letter import DeadLetter, Headers
from pipeline.errors import FatalError, HeadwaterError, RejectedError, TransientError, UsageError, backoff
from pipeline.files.private import private_directory
from pipeline.limits import HEADROOM, spare_the_collector
from pipeline.metrics import Metrics
from pipeline.runtime.offsets import require_remembered
from pipeline.runtime.web import add_pages
from pipeline.settings.root import Settings
from pipeline.sources.places import Gap
from pipeline.state.table import Table
from pipeline.topics.admin import TopicRefusedError, UnreachableError, admin, ensure
from pipeline.topics.names import Topics
from pipeline.topics.read import read
from pipeline.transport import Batch, BatchSchema, Transport, batches, clients
from pipeline.transport.consumer import Consumer
from pipeline.transport.fatal import end_within, stop_process
from pipeline.transport.starts import Lost

T = TypeVar("T")
Attach = Callable[["Worker"], None]
Preflight = Callable[[], None]
STOP_SECONDS = 9.5
"""Seconds that a worker may take to stop; what it has not committed by then is done again by the next owner."""
LAST_SECONDS = 1.0
"""Seconds that tasks have to end when everything has stopped, and again when they are cancelled."""
AGAIN = "again"
"""Holds partitions whose batch is to be tried again."""
HEARTBEAT = 0.3
"""Seconds between two heartbeats at most."""
AGENTS = "headwater.agents"
"""Entry-point group: the name of an agent, and the function that attaches it to a worker."""


class Tables(TableManager):
    """Faust's table manager without the second that it waits at the start: our tables are declared before."""

    async def on_start(self) -> None:
        """Register the tables."""
        await self._update_channels()
        await self.recovery.start()


class QuietWorker(faust.Worker):
    """Faust's worker without its spinner: for that, `-l warn` sets the root logger to DEBUG and every debug record is made.

    Nor does it sleep at its end, two seconds long: it waits for tasks, so long at most.
    """

    def _setup_spinner_handler(self, logger: logging.Logger, level: int) -> None:
        pass

    def _gather_all(self) -> None:
        """Let tasks end by themselves, but for those that wait for an event that nobody sets any more; cancel what is left."""
        tasks = asyncio.all_tasks(self.loop)
        ending = [task for task in tasks if getattr(task.get_coro(), "__qualname__", "") != "Event.wait"]
        if ending:
            self.loop.run_until_complete(asyncio.wait(ending, timeout=LAST_SECONDS))
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

    async def _sentinel_task(self) -> None:
        """Wait for the end of what was cancelled."""
        cancelled = asyncio.all_tasks() - {asyncio.current_task()}
        if cancelled:
            await asyncio.wait(cancelled, timeout=LAST_SECONDS)


class App(faust.App):
    """A Faust app that makes its topics and looks at its sources before it starts."""

    worker: Worker

    def on_init_dependencies(self) -> Iterable[ServiceT]:
        """Leave the web server out when the settings say so: Faust's command line sets it on by default."""
        if not self.worker.settings.web.enabled:
            self.conf.web_enabled = False
        return super().on_init_dependencies()

    async def on_first_start(self) -> None:
        """Stop with one clear line when something that the worker needs is not there."""
        try:
            await asyncio.to_thread(self.worker.prepare)
        except HeadwaterError as error:
            stop_process(error.message, hint=error.hint)
        await super().on_first_start()

    async def on_stop(self) -> None:
        """Stop, but not for ever: calls to a broker that is down return after minutes."""
        if self.in_worker:
            end_within(STOP_SECONDS, f"the worker could not stop within {STOP_SECONDS:g} s: does the broker answer?")
        await super().on_stop()
        for close in self.worker.at_end:
            close()


class Worker:
    """What an agent is attached to: the app, the settings, the names of the topics, and ways to write."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics = Topics(settings)
        self.metrics = Metrics()
        self.preflights: list[Preflight] = []
        self.at_end: list[Callable[[], None]] = []
        """Called when the worker has stopped."""
        self.standing: list[Callable[[], Mapping[str, str]]] = []
        """Tell what stands on purpose, and why: it makes the worker not ready."""
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
            # A worker hears of a rebalance in the answer to a heartbeat, and until then partitions stand still.
            broker_heartbeat_interval=min(settings.kafka.session_timeout / 5, HEARTBEAT),
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
        self.app.worker = self
        self._failures: dict[TP | None, int] = {}
        """By partition, how often in a row its batch could not be done yet."""
        self.transport = cast("Transport", self.app.transport)
        self.transport.properties = settings.kafka.properties
        self.transport.group_protocol = settings.kafka.group_protocol
        self.transport.slice_seconds = settings.commit_interval
        self.transport.exactly_once = settings.processing_guarantee == "exactly_once"
        self.transport.message_max = settings.kafka.max_message_bytes + HEADROOM
        self.transport.tell_loss = self.write_gap
        self.transport.leaves_out = partial(becomes_letter, settings)
        self.transport.transaction.record_max = settings.kafka.max_message_bytes
        self.transport.join(self.metrics)
        add_pages(self)

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
        transaction.in_hand = next((one for one in args if isinstance(one, Batch)), None)
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
                can_find = isinstance(batch, Batch) and becomes_letter(self.settings, error)
                if not (can_find and consumer.blame(batch, error)):
                    raise

    def _try_again(self, batch: Any, error: TransientError) -> None:
        """Have a batch done again after a pause that grows; the other partitions go on."""
        tp = _place(batch)
        if tp is None:  # what a source offers has no place in Kafka: the slice is done again
            self.transport.transaction.spoil(error.message)
            return
        failures = self._failures[tp] = self._failures.get(tp, 0) + 1
        consumer = cast("Consumer", self.app.consumer)
        consumer.stand({tp}, AGAIN, f"{batch!r} is tried again: {error}")
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

    def write_gap(self, lost: Lost) -> None:
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

    def _time_of(self, lost: Lost) -> float:
        """Return the time of the first record behind a gap, in seconds since the epoch; 0 where there is none, or no answer."""
        consumer = clients.consumer(self.transport.client_conf(), self.settings.group, enable_partition_eof=True)
        try:
            found = read(consumer, lost.tp.topic, {lost.tp.partition: lost.end}, 1)
        except (HeadwaterError, KafkaException):
            return 0.0
        finally:
            consumer.close()
        return found[0].timestamp()[1] / 1000 if found else 0.0

    def reject(self, batch: Batch, index: int, stage: str, error: Exception) -> None:
        """Write one message of a batch to the dead-letter topic, untouched, with the reason."""
        record = batch.records[index]
        self.reject_letter(
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

    def reject_letter(self, letter: DeadLetter) -> None:
        """Write a dead letter into the slice; without its value where that is too large for the topic of dead letters."""
        place = letter.topic, letter.partition, letter.offset, letter.stage, letter.flow, hash(letter.value)
        topic = self.topics.dead_letter
        try:
            self.produce(topic, letter.key, letter.value, -1, letter.headers, origin=("dead letter", *place))
        except RejectedError:
            self.produce(topic, letter.key, None, -1, letter.without_value().headers)
        self.metrics.count(self.metrics.dead_letters, 1, letter.stage)


def becomes_letter(settings: Settings, error: Exception) -> bool:
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


def known_agents() -> Mapping[str, EntryPoint]:
    """Return the agents that are installed, by name. Not loaded: boto3 and pyarrow take a while."""
    return {entry.name: entry for entry in entry_points(group=AGENTS)}


def wanted_agents(settings: Settings) -> tuple[str, ...]:
    """Return the agents that a worker runs: those named, or all that the settings have work for."""
    if settings.destination is not None:
        return (settings.destination[0],)  # of [[mirrors]], [[replicas]], [[lakes]]
    if settings.agents:
        return settings.agents
    has_work = {
        "ingest": settings.sources,
        "transform": settings.flows,
        "lake": settings.lake.url and Topics(settings).lake_sinks,
        "mirror": None,  # they are named
        "replica": None,
        "pubsub": None,
    }
    return tuple(name for name in known_agents() if has_work.get(name, True))


def create_app(settings: Settings) -> App:
    """Build the app with the agents that the settings ask for; raise UsageError for one that does not exist."""
    worker = Worker(settings)
    known = known_agents()
    for name in wanted_agents(settings):
        if name not in known:
            raise UsageError(f"there is no agent {name!r}", hint=f"headwater run {' '.join(known)}")
        attach: Attach = known[name].load()
        attach(worker)
    return worker.app
