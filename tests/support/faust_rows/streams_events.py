from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`stream.events()`: keys, headers, offsets and times; `event.forward`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for event in stream.events():
        assert event.message.offset >= 0
        assert event.message.timestamp > 0
        await event.forward(out)


def expected(inputs: Numbers):
    return in_order(inputs)
