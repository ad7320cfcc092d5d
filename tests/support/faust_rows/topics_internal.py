from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`internal=True`, `partitions=`, `retention=`, `compacting=`: topics that Faust makes"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
between = app.topic(name("made"), internal=True, partitions=3, retention=86_400.0, key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def send(stream):
    async for key, number in stream.items():
        await between.send(key=key, value=number)


@app.agent(between)
async def copy(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=number)


def expected(inputs: Numbers):
    return in_order(inputs)
