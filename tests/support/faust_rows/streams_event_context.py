from __future__ import annotations

import faust

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`async with event`, `faust.current_event()`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for event in stream.events():
        async with event:
            assert faust.current_event() is event
            await out.send(key=event.key, value=event.value)


def expected(inputs: Numbers):
    return in_order(inputs)
