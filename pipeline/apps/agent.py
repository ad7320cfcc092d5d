"""Faust's agent: inside another agent, what waits for an answer that cannot come says so at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import faust.agents

from pipeline.errors import UsageError
from pipeline.transport.inside import is_inside


class Agent(faust.agents.Agent):
    """An agent of an app on this transport. Its interface is Faust's.

    `ask`, `map`, `kvmap`, `join` and `kvjoin` work everywhere but inside of agents and streams, where they raise UsageError:
    the answer would come with the commit of a slice that waits for the answer.

    Guarantee of an answer: what has been asked for is committed when it comes, once; it comes once, or never when the process
    that asks has ended.
    """

    async def ask(self, value: Any = None, **options: Any) -> Any:
        """Send a value to the agent, and return what it yields for it."""
        self._require_outside("ask")
        return await super().ask(value, **options)

    async def _barrier_send(self, *args: Any, **options: Any) -> AsyncIterator[str]:
        self._require_outside("map or join")
        async for correlation_id in super()._barrier_send(*args, **options):
            yield correlation_id

    def _require_outside(self, what: str) -> None:
        if is_inside():
            raise UsageError(
                f"{what} of the agent {self.name}, inside an agent: the answer comes when this event is committed, and that "
                "waits for the answer",
                hint="use cast, send with reply_to=, or a sink; or ask in a timer, a page, a task or a command",
            )
