"""Waiting for news, but not forever."""

from __future__ import annotations

import asyncio


async def wait_at_most(news: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set; after so many seconds it is set from here.

    Not `asyncio.wait_for`, which makes a task each time: who waits so looks anyway, and an idle worker waits all day.
    """
    alarm = asyncio.get_running_loop().call_later(seconds, news.set)
    try:
        await news.wait()
    finally:
        alarm.cancel()
