from __future__ import annotations

import time

from support.faust_row import Numbers, name, row_app

FEATURE = "A clock that is days off: times in windows that have expired"
GROUP = "What goes wrong"
VERDICT = "works"
HOW = "a time in the past opens a window of its own; Kafka refuses times more than an hour ahead"

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
    now, days = int(time.time()) * 1_000, 86_400_000
    return [("in", "one", b"%d" % n, now - n % 3 * days) for n in range(399)]


def expected(inputs: Numbers):
    return {"one": [number // 3 + 1 for number in range(399)]}
