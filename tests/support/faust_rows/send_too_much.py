from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "A record that is larger than the broker takes"
GROUP = "What goes wrong"
VERDICT = "different"
HOW = "the worker ends, names the topic and the size, and commits nothing of the event"
SAYS = "does not take a record of 20,000,007 bytes"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, _number in stream.items():
        await out.send(key=key, value="x" * 20_000_000)
