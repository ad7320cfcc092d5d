from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`stream.echo(topic, ...)`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for number in stream.echo(out):
        await out.send(value=number + 1_000)


def expected(inputs: Numbers):
    return [number + more for _, number in inputs for more in (0, 1_000)]
