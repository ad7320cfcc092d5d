from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "An agent that never acks: `noack()` without `ack`"
GROUP = "What goes wrong"
VERDICT = "different"
HOW = "the worker ends after a minute, and names the event and the agent"
SAYS = "is not done after"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, number in stream.noack().items():
        await out.send(key=key, value=number)
