"""Versions of the flows, as a worker takes them up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from pipeline.flows.versions import KEY, FlowVersions, Version, dump, encode
from pipeline.settings.flows import FlowSettings


def flows(*names: str) -> tuple[FlowSettings, ...]:
    return tuple(FlowSettings.model_validate({"name": name, "to": "s"}) for name in names)


def version(number: int, *names: str, at: float = 0.0) -> Version:
    return Version(number, at, dump(flows(*names)))


class Worker:
    """What runs in a worker that reads these versions; no broker."""

    def __init__(self) -> None:
        transport: Any = SimpleNamespace(transaction=SimpleNamespace(name="w", produce=lambda *record: None))
        self.built: list[list[str]] = []
        self.versions = FlowVersions(
            transport, "flows", ["raw"], flows("own"), lambda flows: None, self._build, "client"
        )

    def _build(self, flows: Sequence[FlowSettings]) -> list[str]:
        self.built.append([flow.name for flow in flows])
        return self.built[-1]

    async def begin(self) -> None:
        self.versions._loop = asyncio.get_running_loop()
        await self.versions._begin()

    async def read(self, *read: Version) -> list[str]:
        """Read versions, end a slice, and return what runs then."""
        for one in read:
            record: Any = SimpleNamespace(key=lambda: KEY, value=lambda one=one: encode(one))
            self.versions._apply([record])
        heard = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon_threadsafe(heard.set_result, None)  # behind what was read
        await heard
        await asyncio.gather(*self.versions._tasks)
        self.versions.finish(SimpleNamespace())  # type: ignore[arg-type]  # it is not looked at
        return self.versions.current


def test_of_two_versions_with_one_number_the_last_runs() -> None:
    """`flows apply` was typed twice at once: both have read the version before, and count on from it."""

    async def workers() -> list[list[str]]:
        slow, quick, late = Worker(), Worker(), Worker()
        first, second = version(1, "first", at=1.0), version(1, "second", at=2.0)
        for worker in slow, quick:
            await worker.begin()
        assert slow.versions.current == ["own"]
        found = [await slow.read(first, second)]  # both between two slices
        assert await quick.read(first) == ["first"]
        found.append(await quick.read(second))
        late.versions._seen = second  # what a compacted topic still has
        await late.begin()
        return [*found, late.versions.current]

    assert asyncio.run(workers()) == [["second"]] * 3


def test_a_version_that_runs_is_not_built_again() -> None:
    async def worker() -> Worker:
        worker = Worker()
        await worker.begin()
        assert await worker.read(version(1, "a")) == ["a"]
        assert await worker.read(version(1, "a")) == ["a"]
        return worker

    assert asyncio.run(worker()).built == [["own"], ["a"]]
