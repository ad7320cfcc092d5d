from __future__ import annotations

import time

from support.faust_row import Numbers, name, row_app

FEATURE = "`.relative_to_stream()`: the event's time"
GROUP = "Windows"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)
counts = app.Table("counts", default=int).tumbling(60.0, expires=3_600.0).relative_to_stream()


@app.agent(numbers)
async def count(stream):
    async for key, number in stream.items():
        counts[key] += 1
        await out.send(key=key, value=counts[key].value())


def inputs():
    begin = int(time.time()) // 60 * 60 - 1_200
    return [("in", "one", b"%d" % number, (begin + number) * 1_000) for number in range(400)]


def expected(inputs: Numbers):
    return {"one": [number % 60 + 1 for number in range(400)]}
