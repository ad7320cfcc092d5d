from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`app.agent(on_error=...)`"
GROUP = "Agents"
VERDICT = "refused"
HOW = "by Faust 0.15 itself, whose `app.agent` sets `on_error`; catch the error in the agent"
SAYS = "'on_error'"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


async def note(agent, exc):
    await out.send(value=-1)


@app.agent(numbers, on_error=note)
async def copy(stream):
    async for number in stream:
        await out.send(value=number)
