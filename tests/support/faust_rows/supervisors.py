from __future__ import annotations

import mode

from support.faust_row import name, row_app

FEATURE = "`supervisor_strategy=`, `agent_supervisor`"
GROUP = "Agents"
VERDICT = "different"
HOW = "an agent that raises ends the worker: to start it again is left to what supervises the process"
SAYS = "headwater: an agent failed"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers, supervisor_strategy=mode.OneForOneSupervisor)
async def copy(stream):
    async for number in stream:
        if number == 399:
            raise RuntimeError("cannot stomach it")
