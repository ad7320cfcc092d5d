from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`stream.take_events(max_, within)`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for some in stream.take_events(50, within=0.2):
        for event in some:
            await out.send(key=event.key, value=event.value)


def expected(inputs: Numbers):
    return in_order(inputs)
