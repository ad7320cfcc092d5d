from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`sink=[...]`: a topic, a function, another agent"
GROUP = "Agents"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


async def to_a_function(number):
    await out.send(value=number + 10_000)


@app.agent()
async def another(stream):
    async for number in stream:
        await out.send(value=number + 20_000)


@app.agent(numbers, sink=[out, to_a_function, another])
async def copy(stream):
    async for number in stream:
        yield number


def expected(inputs: Numbers):
    return [number + more for _, number in inputs for more in (0, 10_000, 20_000)]
