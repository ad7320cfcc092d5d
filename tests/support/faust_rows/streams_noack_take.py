from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`stream.noack_take(max_, within)`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for events in stream.noack_take(50, within=0.2):
        for event in events:
            await out.send(key=event.key, value=event.value)
            event.ack()


def expected(inputs: Numbers):
    return in_order(inputs)
