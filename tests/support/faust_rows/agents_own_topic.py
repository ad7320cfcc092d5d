from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`@app.agent()` without a topic; `agent.cast`, `agent.send`"
GROUP = "Asking"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(key_type=str, value_type=int)
async def copy(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=number)


@app.agent(numbers)
async def hand_on(stream):
    async for key, number in stream.items():
        if number % 2:
            await copy.cast(number, key=key)
        else:
            await copy.send(key=key, value=number)


def expected(inputs: Numbers):
    return in_order(inputs)
