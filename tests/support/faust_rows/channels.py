from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`app.channel()`: in memory, between agents"
GROUP = "Channels and time"
VERDICT = "different"
HOW = "as in Faust: the event is committed when it is put, and what a channel holds is lost with the worker"
STATE = "not killed"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
channel = app.channel(value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def put(stream):
    async for number in stream:
        await channel.put(number)


@app.agent(channel)
async def take(stream):
    async for number in stream:
        await out.send(value=number)


def expected(inputs: Numbers):
    return [number for _, number in inputs]
