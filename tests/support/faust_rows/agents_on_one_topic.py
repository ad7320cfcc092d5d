from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "Several agents on one topic"
GROUP = "Agents"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def plus(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=number)


@app.agent(numbers)
async def minus(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=-number)


def expected(inputs: Numbers):
    return [number * sign for _, number in inputs for sign in (1, -1)]
