"""How far a source may read ahead of what is committed: bounds its memory."""

from __future__ import annotations

import asyncio

CREDITS, ALL_CREDITS = 8, 24
"""GetRecords answers (1 MB each at most) that were read and not committed: of one partition of the shards topic, and of all
that a worker reads."""


class CreditPool:
    """The credits of one partition under one claim, and its share of those of all. Lives on the event loop.

    A claim that ends closes its credit pool: what was read under it and dropped gives the credits of all back at once, and
    what is given back later no longer counts.
    """

    def __init__(self, of_all: asyncio.Semaphore) -> None:
        self._own, self._all = asyncio.Semaphore(CREDITS), of_all
        self._taken, self._closed = 0, False

    async def take(self) -> None:
        """Wait for a credit. A reader is cancelled only when its claim, and so its pool, is over."""
        await self._own.acquire()
        await self._all.acquire()
        self._taken += 1

    def give(self) -> None:
        """Give a credit back."""
        if not self._closed:
            self._taken -= 1
            self._own.release()
            self._all.release()

    def close(self) -> None:
        """End: give back what is taken."""
        self._closed = True
        while self._taken:
            self._taken -= 1
            self._all.release()
