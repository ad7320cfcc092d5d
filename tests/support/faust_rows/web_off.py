from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`web_enabled=False`"
GROUP = "Sensors and web"
VERDICT = "works"
HOW = ""

app = row_app(web_enabled=False)
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=number)


def expected(inputs: Numbers):
    return in_order(inputs)
