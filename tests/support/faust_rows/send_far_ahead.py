from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`send(timestamp=...)` days ahead"
GROUP = "What goes wrong"
VERDICT = "different"
HOW = "Kafka does not take it: the worker ends, names the topic and commits nothing of the event"
SAYS = "does not take a record"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=number, timestamp=4_000_000_000.0)
