from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`app.stream(topic)` in a task"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.task
async def copy():
    async for key, number in app.stream(numbers).items():
        await out.send(key=key, value=number)


def expected(inputs: Numbers):
    return in_order(inputs)
