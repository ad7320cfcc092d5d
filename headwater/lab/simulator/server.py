"""The simulator over HTTP, on the loopback only: what boto3 takes for AWS through `endpoint_url`."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Self, TypeVar

import msgspec
from aiohttp import web

from headwater.lab.simulator import kinesis
from headwater.lab.simulator.dynamodb import THROTTLED, DynamoDB
from headwater.lab.simulator.event_stream import CONTENT_TYPE
from headwater.lab.simulator.exports import SimulatedExports
from headwater.lab.simulator.fan_out import SUBSCRIBE, FanOut
from headwater.lab.simulator.faults import ApiError, CutOffError, Rates, ServiceFaults, TimedOutError
from headwater.lab.simulator.kinesis import Kinesis
from headwater.lab.simulator.world import World, WorldPlan
from pipeline.errors import TransientError

T = TypeVar("T")
TICK = 0.01
TRUTH, REST, DRY = "/_headwater/truth", "/_headwater/rest", "/_headwater/dry"


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """What to simulate, how fast, and how roughly."""

    plan: WorldPlan = field(default_factory=WorldPlan)
    rates: Rates = field(default_factory=Rates)
    rate: int = 1_000
    """Changes a second; 0: the world changes only by `Running.do`."""
    changes: int | None = None
    """Changes after which nothing happens any more; None: no end."""
    iterator_seconds: float = 900.0
    """How long an iterator lives."""
    subscription_seconds: float = 300.0
    """How long a subscription of enhanced fan-out lasts."""
    wait_for_reader: bool = False
    """Make the first change when the first GetRecords or SubscribeToShard call comes."""
    s3_endpoint: str = ""
    """An S3 (a stand-in) into which tables are exported; '': exports are refused."""
    host: str = "127.0.0.1"
    port: int = 0


class Simulator:
    """One world behind one port. Everything runs on one event loop, so a call sees the world between two changes."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.options = options
        self.world = World(options.plan)
        self.address = ""
        self.faults = ServiceFaults(options.rates, options.plan.seed)
        self.calls: Counter[str] = Counter()
        self._resting = False
        self.kinesis = Kinesis(self.world, self.faults, iterator_seconds=options.iterator_seconds)
        self.fan_out = FanOut(self.kinesis, self.faults, seconds=options.subscription_seconds)
        self.answers: dict[str, Callable[[dict[str, object]], bytes]] = {
            **DynamoDB(self.world, self.faults, iterator_seconds=options.iterator_seconds).calls,
            **self.kinesis.calls,
            **self.fan_out.calls,
            **SimulatedExports(self.world, options.s3_endpoint).calls,
        }
        """How each call is answered, by its target; a test may put its own answers here."""

    async def run(self, started: Callable[[str], None]) -> None:
        """Serve until cancelled; `started` gets the address."""
        app = web.Application(client_max_size=16 << 20)
        app.router.add_post("/", self._answer)
        app.router.add_get(TRUTH, self._truth)
        app.router.add_post(REST, self._rest)
        app.router.add_post(DRY, self._dry)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self.options.host, self.options.port)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.address = f"http://{host}:{port}"
            started(self.address)
            await self._change()
        finally:
            await runner.cleanup()

    async def _change(self) -> None:
        loop, world = asyncio.get_running_loop(), self.world
        while self.options.wait_for_reader and not (self.calls["GetRecords"] or self.calls["SubscribeToShard"]):
            await asyncio.sleep(TICK)
        began = loop.time()
        while not self._resting:
            wanted = int((loop.time() - began) * self.options.rate)
            if self.options.changes is not None:
                wanted = min(wanted, self.options.changes)
            for _ in range(min(wanted - world.made, 1_000)):
                world.step()
            await asyncio.sleep(TICK)
        await asyncio.Event().wait()  # it keeps answering

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        target = request.headers.get("X-Amz-Target", "")
        self.calls[target.rpartition(".")[2]] += 1
        try:
            self.faults.strike(kinesis.THROTTLED if target.startswith(kinesis.PREFIX) else THROTTLED)
            if target == SUBSCRIBE:
                return await self._push(request, self.fan_out.subscribe(msgspec.json.decode(await request.read())))
            body, status = self._call(target)(msgspec.json.decode(await request.read())), 200
        except ApiError as error:
            body = msgspec.json.encode({"__type": f"com.amazonaws#{error.code}", "message": error.message})
            status = error.status
        except TimedOutError:
            if request.transport is not None:
                request.transport.close()
            return web.Response(status=503)
        headers = {"x-amzn-RequestId": f"{sum(self.calls.values())}", "x-amz-crc32": str(zlib.crc32(body))}
        return web.Response(body=body, status=status, content_type="application/x-amz-json-1.0", headers=headers)

    def _call(self, target: str) -> Callable[[dict[str, object]], bytes]:
        if target not in self.answers:
            raise ApiError("UnknownOperationException", "this call is not simulated")
        return self.answers[target]

    async def _push(self, request: web.Request, messages: AsyncIterator[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
        await response.prepare(request)
        with suppress(ConnectionError):  # the reader has gone
            try:
                async for message in messages:
                    await response.write(message)
            except CutOffError as cut:
                await response.write(cut.half)
                if request.transport is not None:
                    request.transport.close()
        return response

    async def _truth(self, request: web.Request) -> web.Response:
        truth = self.world.truth() | {"calls": dict(self.calls), "faults": self.faults.counts}
        return web.Response(body=msgspec.json.encode(truth), content_type="application/json")

    async def _dry(self, request: web.Request) -> web.Response:
        """Answer without records while the body is not empty: readers are behind, and get nothing."""
        self.faults.dry = bool(await request.read())
        return web.Response()

    async def _rest(self, request: web.Request) -> web.Response:
        """Make no more changes; what is late to be listed is listed."""
        self._resting = True
        self.world.settle()
        return web.Response()


class Running:
    """A simulator in a thread of its own, as a context: `address` is for boto3, `do` changes the world between two calls."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.simulator = Simulator(options)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simulator", daemon=True)

    @property
    def address(self) -> str:
        """What AWS_ENDPOINT_URL must be."""
        return self.simulator.address

    def do(self, change: Callable[[World], T]) -> T:
        """Change or look at the world."""

        async def run() -> T:
            return change(self.simulator.world)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        if not self._started.wait(30):
            raise TransientError("the simulator does not start")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)

    def _run(self) -> None:
        with self._loop_of_its_own() as loop:
            self._task = loop.create_task(self.simulator.run(lambda _: self._started.set()))
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(self._task)

    @contextmanager
    def _loop_of_its_own(self) -> Iterator[asyncio.AbstractEventLoop]:
        asyncio.set_event_loop(self._loop)
        try:
            yield self._loop
        finally:
            self._loop.close()
