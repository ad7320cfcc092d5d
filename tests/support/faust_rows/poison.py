from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "An agent that raises"
GROUP = "What goes wrong"
VERDICT = "different"
HOW = (
    "Faust acks the event and starts the agent again: the event is lost. Here the worker ends and commits nothing of it"
)
SAYS = "headwater: an agent failed"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for number in stream:
        await out.send(value=number)
        if number == 399:
            raise RuntimeError("cannot stomach it")
