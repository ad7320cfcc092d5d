"""How far a source reads ahead: of one partition, of all, and over the end of a claim."""

from __future__ import annotations

import asyncio

from pipeline.sources.credit_pool import CREDITS, CreditPool


async def taken(pool: CreditPool, most: int) -> int:
    """Take credits until it would wait, or so many; return how many."""
    count = 0
    while count < most:
        take = asyncio.ensure_future(pool.take())
        await asyncio.sleep(0)
        if not take.done():
            take.cancel()
            await asyncio.gather(take, return_exceptions=True)
            return count
        count += 1
    return count


def test_a_partition_has_its_credits_and_gets_them_back() -> None:
    async def run() -> tuple[int, int]:
        pool = CreditPool(asyncio.Semaphore(100))
        first = await taken(pool, CREDITS)
        pool.give()
        return first, await taken(pool, 1)

    assert asyncio.run(run()) == (CREDITS, 1)


def test_a_partition_does_not_take_more_than_its_own() -> None:
    async def run() -> int:
        return await taken(CreditPool(asyncio.Semaphore(100)), CREDITS + 1)

    assert asyncio.run(run()) == CREDITS


def test_all_partitions_together_have_a_bound() -> None:
    async def run() -> list[int]:
        credits_of_all = asyncio.Semaphore(3)
        return [await taken(CreditPool(credits_of_all), 2) for _ in range(3)]

    assert asyncio.run(run()) == [2, 1, 0]


def test_a_claim_that_ends_gives_back_what_it_had_and_nothing_twice() -> None:
    async def run() -> int:
        credits_of_all = asyncio.Semaphore(3)
        old = CreditPool(credits_of_all)
        await taken(old, 2)
        old.close()
        old.give()  # of an answer that was under way when the claim ended
        old.close()
        return await taken(CreditPool(credits_of_all), 4)

    assert asyncio.run(run()) == 3
