from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`@app.agent`: a stream of events, `topic.send` to another topic"
GROUP = "Agents"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def double(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=number * 2)


def expected(inputs: Numbers):
    return in_order((key, number * 2) for key, number in inputs)
