from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`stream.take(max_, within)`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for some in stream.take(50, within=0.2):
        for number in some:
            await out.send(value=number)


def expected(inputs: Numbers):
    return [number for _, number in inputs]
