"""An ordinary Faust app with agents that Faust itself treats badly; `test_faust_bugs.py` runs it as a worker.

FAULTY_AGENT names the agent; files in the working directory of the test (FAULTY_DIRECTORY) steer and tell.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import faust
from faust import Stream
from faust.types import TP

from pipeline.transport import Participant, Slice, Transport

NAME = os.environ["FAULTY_NAME"]
AGENT = os.environ["FAULTY_AGENT"]
DIRECTORY = Path(os.environ["FAULTY_DIRECTORY"])

app = faust.App(
    NAME,
    broker=f"headwater://{os.environ['HEADWATER_KAFKA__BOOTSTRAP_SERVERS']}",
    datadir=os.environ["HEADWATER_STATE_DIR"],
    web_port=int(os.environ["HEADWATER_WEB__PORT"]),
    web_host="127.0.0.1",
    topic_partitions=2,
    topic_replication_factor=1,
    topic_disable_leader=True,
    broker_session_timeout=6,
    broker_heartbeat_interval=1,
    value_serializer="raw",
    key_serializer="raw",
)
words = app.topic(f"{NAME}.words", key_type=bytes, value_type=bytes)
out = app.topic(f"{NAME}.out", key_type=bytes, value_type=bytes)
AGENTS: dict[str, Any] = {}


def agent(function: Any) -> Any:
    """Keep an agent for the worker that wants it."""
    AGENTS[function.__name__] = function
    return function


@agent
async def copy(stream: Stream[bytes]) -> None:
    """Send on each word as it is, with its headers and its time."""
    async for event in stream.events():
        headers = dict(cast("list[tuple[str, bytes]]", event.message.headers or []))
        await out.send(key=event.key, value=event.value, headers=headers, timestamp=event.message.timestamp)


@agent
async def raise_at_poison(stream: Stream[bytes]) -> None:
    """Raise at a word, always."""
    async for word in stream:
        await out.send(value=word)
        if word == b"poison":
            raise RuntimeError("cannot stomach it")


@agent
async def take(stream: Stream[bytes]) -> None:
    """Work on many words at once: Faust's `take` acks them in `finally`, and the last ones a while later."""
    async for some in stream.take(10, within=1.0):
        for word in some:
            await out.send(value=word)
            if word == b"poison":
                raise RuntimeError("cannot stomach it")


@agent
async def hold_one(stream: Stream[bytes]) -> AsyncIterator[None]:
    """Keep one word back while others are done: acks come out of order with three of these side by side."""
    async for word in stream:
        while word == b"held" and not (DIRECTORY / "gate").exists():
            (DIRECTORY / "holding").touch()
            await asyncio.sleep(0.02)
        await out.send(value=word)
        yield None


@agent
async def flood(stream: Stream[bytes]) -> None:
    """Send more than Faust's buffer takes, without waiting for any of it."""
    async for word in stream:
        for number in range(5_000):
            out.send_soon(key=word, value=b"%d" % number)


class SlowBroker(Participant):
    """Takes its time at every end of a slice, as a broker may."""

    def finish(self, work: Slice) -> None:
        """Block the transaction's thread."""
        if work.messages:
            time.sleep(2.0)


class Terminated(Participant):
    """Is sent SIGTERM in the middle of a rebalance, once."""

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Ask this process to end as its partitions go."""
        if partitions and not (DIRECTORY / "terminated").exists():
            (DIRECTORY / "terminated").touch()
            os.kill(os.getpid(), signal.SIGTERM)


transport = cast("Transport", app.transport)
if AGENT == "copy_slowly":

    async def watch_the_loop() -> None:
        """Write down how long the event loop stood still at most."""
        worst = 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - before)
            (DIRECTORY / "worst").write_text(f"{worst}")

    app.task(watch_the_loop)
    transport.add_participant(SlowBroker())
if AGENT == "copy_terminated":
    transport.add_participant(Terminated())

function = AGENTS[AGENT.removesuffix("_slowly").removesuffix("_terminated")]
app.agent(words, name=AGENT, concurrency=3 if AGENT == "hold_one" else 1)(function)
