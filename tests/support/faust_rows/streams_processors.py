from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`stream.add_processor(function)`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    stream.add_processor(lambda number: number * 3)
    async for number in stream:
        await out.send(value=number)


def expected(inputs: Numbers):
    return [number * 3 for _, number in inputs]
