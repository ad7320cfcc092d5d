from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`stream.through(topic)`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""
TOPICS = ["between"]

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
between = app.topic(name("between"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, number in stream.through(between).items():
        await out.send(key=key, value=number)


def expected(inputs: Numbers):
    return in_order(inputs)
