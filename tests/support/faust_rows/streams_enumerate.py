from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`stream.enumerate()`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for _place, number in stream.enumerate():
        await out.send(value=number)


def expected(inputs: Numbers):
    return [number for _, number in inputs]
