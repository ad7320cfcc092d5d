"""Which flows the workers run: those of their settings, until a version is applied; then that one, on all of them.

A version is on the flows topic, whole, under the key `flows`; each worker writes there what it runs, under `worker/` and
its transactional ID. A worker switches to a version between two slices: no slice is processed half by one and half by
another. The last one on the topic runs everywhere, also of two that were applied at the same time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

import confluent_kafka
import msgspec
from confluent_kafka import OFFSET_BEGINNING, Message
from faust.types import TP
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import HeadwaterError, TransientError, UsageError
from pipeline.retry import within_async
from pipeline.settings.base import PUBLISHED
from pipeline.settings.flows import FlowSettings
from pipeline.topics.read import read_topic
from pipeline.transport import Follower, Participant, Slice, Transport
from pipeline.transport.consumer import Consumer
from pipeline.transport.fatal import stop_process

log = logging.getLogger(__name__)
VERSIONS_PATIENCE_S = 60.0
"""Seconds for which what may pass is tried again before a worker gives up to start."""
KEY = b"flows"
WORKER = b"worker/"
T = TypeVar("T")
_flows = TypeAdapter(tuple[FlowSettings, ...])


class Version(msgspec.Struct, frozen=True):
    """Flows that were applied."""

    number: int
    """From 1 on; 0 stands for the settings of a worker."""
    at: float = 0.0
    """When, in seconds since the epoch."""
    flows: list[dict[str, Any]] = []


class WorkerFlows(msgspec.Struct, frozen=True):
    """What a worker says of its flows."""

    client: str
    """Its client ID: members of the group are known by it."""
    version: int
    """The version that it runs; 0: the flows of its settings."""
    at: float
    """Since when, in seconds since the epoch."""
    stopped: dict[str, str] = {}
    """Flows that are paused, and why: `transform` stops until another version is applied."""
    refused: str = ""
    """Why the worker did not switch to a later version."""


class Versions(NamedTuple):
    """What is on the flows topic."""

    applied: Version
    workers: dict[str, WorkerFlows]
    """What each worker said last, by its client ID."""


decode_version = msgspec.json.Decoder(Version).decode
decode_worker = msgspec.json.Decoder(WorkerFlows).decode
encode = msgspec.json.encode


def parse_flows(flows: Sequence[Any]) -> tuple[FlowSettings, ...]:
    """Return the flows of a version; raise UsageError when this program does not know them.

    A secret in them, from before such were refused, is said: it stops no worker, since it is there already.
    """
    try:
        found = _flows.validate_python(flows, context={PUBLISHED: True})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise UsageError(
            f"flows.{place}: {problem['msg'].removeprefix('Value error, ')}",
            hint="headwater flows apply, by the workers' version",
        ) from error
    _warn_of_secrets(flows)
    return found


def _warn_of_secrets(flows: Sequence[Any]) -> None:
    try:
        _flows.validate_python(flows)
    except ValidationError as error:
        said = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
        log.warning("The flows topic holds a secret; replace the secret, and: headwater flows apply: %s", said)


def dump(flows: Sequence[FlowSettings]) -> list[dict[str, Any]]:
    """Return flows as plain data, without what is not set."""
    return cast(
        "list[dict[str, Any]]", _flows.dump_python(tuple(flows), mode="json", by_alias=True, exclude_defaults=True)
    )


class FlowVersions(Participant, Generic[T]):
    """What this worker runs.

    `prepare` is called with new flows on the event loop, then `build` in a thread: it may ask AWS for keys. Both may raise
    HeadwaterError.

    The partitions of `gate` wait until the flows topic has been read to its end once.
    """

    def __init__(
        self,
        transport: Transport,
        topic: str,
        gate: Sequence[str],
        own: Sequence[FlowSettings],
        prepare: Callable[[Sequence[FlowSettings]], None],
        build: Callable[[Sequence[FlowSettings]], T],
        client_id: str,
    ) -> None:
        self.topic, self.gate = topic, frozenset(gate)
        self._transport, self._own = transport, own
        self._prepare, self._build = prepare, build
        self._client_id = client_id
        self._current: T | None = None
        self._next: tuple[Version, T] | None = None
        self._seen = Version(0)
        """The last version that was read."""
        self._taken_up = self._seen
        """The version that runs, whole: of two that were applied at once the numbers are the same."""
        self._said = WorkerFlows(client_id, -1, 0.0)
        self._runs = WorkerFlows(client_id, 0, time.time())
        self._stopped: dict[str, str] = {}
        self._follower: Follower | None = None
        self._caught_up = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def are_there(self) -> bool:
        """Whether it is known what runs."""
        return self._current is not None

    @property
    def current(self) -> T:
        """What runs; only within a slice."""
        if self._current is None:
            raise RuntimeError("the flows are not there before the gate is open")
        return self._current

    @property
    def stopped(self) -> dict[str, str]:
        """Flows that are paused, and why."""
        return self._stopped

    # -- on the event loop --------------------------------------------------------------------------------------------

    def assigned(self, partitions: frozenset[TP]) -> None:
        """Hold new partitions of the gate until it is known what runs; forever while a flow is paused."""
        gated = {tp for tp in partitions if tp.topic in self.gate}
        if not gated:
            return
        consumer = cast("Consumer", self._transport.app.consumer)
        consumer.hold(gated, self.topic)
        task = asyncio.ensure_future(self._catch_up(consumer, gated))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            stop_process(
                f"{error}" if not isinstance(error, HeadwaterError) else error.message, hint=getattr(error, "hint", "")
            )

    async def _catch_up(self, consumer: Consumer, gated: set[TP]) -> None:
        self._loop = asyncio.get_running_loop()
        if self._follower is None:
            self._follower = Follower(self._transport.client_conf(), self.topic, self._apply)
            self._follower.start()
        await self._follower.wait_until({0: await consumer.questions.end(TP(self.topic, 0))})
        async with self._one_at_a_time:
            await self._begin()
        if not self._stopped:
            consumer.release(gated, self.topic)

    async def _begin(self) -> None:
        if not self._caught_up:
            flows = parse_flows(self._seen.flows) if self._seen.number else self._own
            if self._seen.number and text_of(self._own) != text_of(flows):
                log.warning(
                    "Version %d of the flows runs, not the one in the settings: headwater flows apply",
                    self._seen.number,
                )
            self._prepare(flows)
            version = self._seen
            self._take_up(version, await self._built(flows))
            self._caught_up = True
            self._heard_of(self._seen)  # of what came meanwhile

    async def _built(self, flows: Sequence[FlowSettings]) -> T:
        """Build the flows; what may pass, such as a throttle of AWS KMS, is tried again for a minute."""
        tries = 0

        def passes(error: BaseException) -> bool:
            nonlocal tries
            tries += 1
            if isinstance(error, TransientError) and tries == 3:
                log.warning("Still trying to start the flows: %s", error)
            return isinstance(error, TransientError)

        return await within_async(VERSIONS_PATIENCE_S, passes, growing=True)(asyncio.to_thread, self._build, flows)

    def _apply(self, records: Sequence[Message]) -> None:
        """Take note of a version; in the follower's thread."""
        versions = [record.value() for record in records if record.key() == KEY and record.value()]
        if versions:
            self._seen = decode_version(cast("bytes", versions[-1]))
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._heard_of, self._seen)

    def _heard_of(self, version: Version) -> None:
        if not self._caught_up or version == self._taken_up:
            return
        task = asyncio.ensure_future(self._make(version))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _make(self, version: Version) -> None:
        async with self._one_at_a_time:
            try:
                flows = parse_flows(version.flows)
                self._prepare(flows)
                self._next = version, await self._built(flows)
            except HeadwaterError as error:
                self._runs = msgspec.structs.replace(self._runs, refused=f"version {version.number}: {error}")

    def pause(self, flow: str, reason: str) -> None:
        """Stop: the slice under way is given up, and `transform` stops until another version is applied."""
        self._stopped = {**self._stopped, flow: reason}
        self._runs = msgspec.structs.replace(self._runs, stopped=self._stopped)
        consumer = cast("Consumer", self._transport.app.consumer)
        consumer.give_up_and_hold({tp for tp in consumer.assignment() if tp.topic in self.gate}, self.topic, reason)

    def _go_on(self) -> None:
        consumer = cast("Consumer", self._transport.app.consumer)
        consumer.release({tp for tp in consumer.assignment() if tp.topic in self.gate}, self.topic)

    # -- in the transaction's thread ----------------------------------------------------------------------------------

    def due(self) -> bool:
        """Say whether there is a version to take up, or something to say."""
        return self._next is not None or (self._caught_up and self._runs != self._said)

    def finish(self, work: Slice) -> None:
        """Say what runs."""
        upcoming = self._next
        if upcoming is not None:
            self._take_up(*upcoming)
            if self._next is upcoming:  # else a newer one is there already
                self._next = None
        if self._caught_up and self._runs != self._said:
            # By the state directory, which outlives the process: the topic holds one entry a worker, however often it starts.
            key = WORKER + self._transport.transaction.name.encode()
            self._transport.transaction.produce(self.topic, key, encode(self._runs), 0)

    def committed(self, work: Slice) -> None:
        """Take note that what was said is known."""
        self._said = self._runs

    def _take_up(self, version: Version, what: T) -> None:
        # The slice's records have been worked on by now: those of the next one meet the new flows.
        self._current, stood = what, bool(self._stopped)
        self._stopped, self._taken_up = {}, version
        self._runs = WorkerFlows(self._client_id, version.number, time.time())
        if stood and self._loop is not None:
            self._loop.call_soon_threadsafe(self._go_on)


def text_of(flows: Sequence[FlowSettings]) -> str:
    """Return flows in a form in which equal flows are equal."""
    return json.dumps(dump(flows), sort_keys=True)


def flow_versions(consumer: confluent_kafka.Consumer, topic: str, partitions: int) -> Versions:
    """Read the flows topic."""
    applied, workers = Version(0), dict[str, WorkerFlows]()
    for record in read_topic(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING), None):
        key, value = bytes(record.key() or b""), record.value()
        if key == KEY and value:
            applied = decode_version(value)
        elif key.startswith(WORKER) and value:
            said = decode_worker(value)
            workers[said.client] = said
    return Versions(applied, workers)
