from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`stream.group_by(function)`: by another key, over a topic of its own"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


def by_tens(number):
    return f"tens-{number // 10}"


@app.agent(numbers)
async def copy(stream):
    async for key, number in stream.group_by(by_tens, name="tens").items():
        await out.send(key=key, value=number)


def expected(inputs: Numbers):
    return [number for _, number in inputs]
