"""The end of a worker: no sleep, but time for what is still at work."""

from __future__ import annotations

import asyncio
import time

from pipeline.app import LAST_SECONDS, QuietWorker


def test_a_worker_waits_at_its_end_for_what_ends_by_itself_and_cancels_the_rest() -> None:
    loop = asyncio.new_event_loop()
    worker = QuietWorker.__new__(QuietWorker)
    worker.loop = loop
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(0.1)
            ended.append("work")
        finally:
            await asyncio.sleep(0)

    async def clean_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            ended.append("cleaned up")

    async def begin() -> list[asyncio.Task[object]]:
        tasks: list[asyncio.Task[object]] = [
            asyncio.ensure_future(task) for task in (work(), clean_up(), asyncio.Event().wait())
        ]
        await asyncio.sleep(0)
        return tasks

    tasks = loop.run_until_complete(begin())
    worker._gather_all()
    loop.run_until_complete(worker._sentinel_task())
    assert ended == ["work", "cleaned up"]
    assert [task.cancelled() for task in tasks] == [False, True, True]
    loop.close()


def test_a_worker_with_nothing_left_to_do_ends_at_once() -> None:
    loop = asyncio.new_event_loop()
    worker = QuietWorker.__new__(QuietWorker)
    worker.loop = loop

    async def begin() -> asyncio.Task[bool]:
        return asyncio.create_task(asyncio.Event().wait())

    left = loop.run_until_complete(begin())
    began = time.monotonic()
    worker._gather_all()
    loop.run_until_complete(worker._sentinel_task())
    assert time.monotonic() - began < LAST_SECONDS / 2
    assert left.cancelled()
    loop.close()
