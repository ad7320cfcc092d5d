from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`concurrency=2`"
GROUP = "Agents"
VERDICT = "works"
HOW = "as in Faust, events of a key may overtake each other"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers, concurrency=2)
async def copy(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=number)


def expected(inputs: Numbers):
    return [number for _, number in inputs]
