"""Faust's app, table manager and worker, where Headwater needs them otherwise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import faust
from faust.tables.manager import TableManager
from mode import ServiceT

from pipeline.errors import HeadwaterError
from pipeline.transport.fatal import end_within, stop_process

STOP_SECONDS = 9.5
"""Seconds that a worker may take to stop; what it has not committed by then is processed again by the next owner."""
LAST_SECONDS = 1.0
"""Seconds that tasks have to end when everything has stopped, and again when they are cancelled."""


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

    has_own_settings = True
    """Tells `pipeline.apps` that the settings are not given to Faust by a user."""
    worker: Any
    """The worker that this app belongs to; typed as any, for it is built of this module."""
    web_wanted: bool
    prepare: Callable[[], None]
    at_end: list[Callable[[], None]]

    def on_init_dependencies(self) -> Iterable[ServiceT]:
        """Leave the web server out when the settings say so: Faust's command line sets it on by default."""
        if not self.web_wanted:
            self.conf.web_enabled = False
        return super().on_init_dependencies()

    async def on_first_start(self) -> None:
        """Stop with one clear line when something that the worker needs is not there."""
        try:
            await asyncio.to_thread(self.prepare)
        except HeadwaterError as error:
            stop_process(error.message, hint=error.hint)
        await super().on_first_start()

    async def on_stop(self) -> None:
        """Stop, but not forever: calls to a broker that is down return after minutes."""
        if self.in_worker:
            end_within(STOP_SECONDS, f"the worker could not stop within {STOP_SECONDS:g} s: does the broker answer?")
        await super().on_stop()
        for close in self.at_end:
            close()
