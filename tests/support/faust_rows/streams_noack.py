from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`stream.noack()`, and `event.ack()` of one's own"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for event in stream.noack().events():
        await out.send(key=event.key, value=event.value)
        await stream.ack(event)


def expected(inputs: Numbers):
    return in_order(inputs)
