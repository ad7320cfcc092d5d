"""Waiting for news: they end it, and so does the time."""

from __future__ import annotations

import asyncio

from pipeline.transport.alarm import wait_at_most


def test_news_end_the_wait_and_leave_no_alarm_behind() -> None:
    async def run() -> bool:
        news = asyncio.Event()
        waiting = asyncio.ensure_future(wait_at_most(news, 0.05))
        await asyncio.sleep(0)
        news.set()
        await waiting
        news.clear()
        other = asyncio.Event()
        await wait_at_most(other, 0.1)  # longer than the first alarm, which must have been cancelled
        return news.is_set()

    assert not asyncio.run(run())


def test_without_news_the_alarm_ends_the_wait() -> None:
    async def run() -> bool:
        news = asyncio.Event()
        await wait_at_most(news, 0.01)
        return news.is_set()

    assert asyncio.run(asyncio.wait_for(run(), 5))
