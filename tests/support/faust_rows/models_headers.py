from __future__ import annotations

import time

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "Headers and times of events, `send(headers=..., timestamp=..., partition=...)`"
GROUP = "Models"
VERDICT = "works"
HOW = ""
TOPICS = ["between"]

AT = float(int(time.time()))
app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
between = app.topic(name("between"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def send(stream):
    async for key, number in stream.items():
        await between.send(key=key, value=0, headers={"number": b"%d" % number}, timestamp=AT, partition=3)


@app.agent(between)
async def copy(stream):
    async for event in stream.events():
        assert event.message.timestamp == int(event.message.timestamp)
        assert event.message.partition == 3
        await out.send(key=event.key, value=int(event.headers["number"]))


def expected(inputs: Numbers):
    return in_order(inputs)
