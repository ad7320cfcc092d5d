"""The end of a worker: no sleep, but time for what is still at work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from pipeline.runtime import faust_app as app
from pipeline.runtime.faust_app import QuietWorker

HOUR = 3_600.0
"""Seconds in which no test ends: a worker that has so much time must have waited for the tasks themselves."""


@pytest.fixture
def worker() -> Iterator[QuietWorker]:
    made = QuietWorker.__new__(QuietWorker)
    made.loop = asyncio.new_event_loop()
    yield made
    made.loop.close()


def turn() -> asyncio.Future[None]:
    """Return what is done when the loop has gone round once."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(done.set_result, None)
    return done


def begun(worker: QuietWorker, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
    """Return a task that has run as far as it can."""

    async def begin() -> asyncio.Task[Any]:
        task = asyncio.create_task(work())
        await turn()
        return task

    return worker.loop.run_until_complete(begin())


def test_a_worker_waits_at_its_end_for_what_ends_by_itself(
    worker: QuietWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LAST_SECONDS", HOUR)

    async def work() -> str:
        for _ in range(5):
            await turn()
        return "ended"

    task = begun(worker, work)
    worker._gather_all()
    worker.loop.run_until_complete(worker._sentinel_task())
    assert task.result() == "ended"


def test_a_worker_cancels_what_does_not_end_and_waits_for_its_clean_up(
    worker: QuietWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await turn()
            ended.append("cleaned up")

    task = begun(worker, work)
    monkeypatch.setattr(app, "LAST_SECONDS", 0.0)
    worker._gather_all()
    assert not ended
    monkeypatch.setattr(app, "LAST_SECONDS", HOUR)
    worker.loop.run_until_complete(worker._sentinel_task())
    assert ended == ["cleaned up"]
    assert task.cancelled()


def test_a_worker_with_nothing_left_to_do_ends_at_once(worker: QuietWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LAST_SECONDS", HOUR)
    left = begun(worker, lambda: asyncio.Event().wait())
    worker._gather_all()
    worker.loop.run_until_complete(worker._sentinel_task())
    assert left.cancelled()
