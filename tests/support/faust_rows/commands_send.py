from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`faust send`"
GROUP = "Commands"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for number in stream:
        await out.send(value=number)
