from __future__ import annotations

import time

from support.faust_row import name, row_app

FEATURE = "`on_window_close=`, `table_cleanup_interval`"
GROUP = "Windows"
VERDICT = "works"
HOW = ""

app = row_app(table_cleanup_interval=1.0)
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


async def closed(key, value):
    await out.send(key=key[0], value=value)


counts = app.Table("counts", default=int, on_window_close=closed).tumbling(10.0, expires=300.0).relative_to_stream()


@app.agent(numbers)
async def count(stream):
    async for key, number in stream.items():
        counts[key] += 1


def inputs():
    begin = int(time.time()) // 10 * 10 - 1_200
    return [("in", "one", b"%d" % number, (begin + number) * 1_000) for number in range(400)]
