from __future__ import annotations

import faust

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`faust.Schema(key_type, value_type, ...)`"
GROUP = "Models"
VERDICT = "works"
HOW = ""

app = row_app()
schema = faust.Schema(key_type=str, value_type=int, key_serializer="raw", value_serializer="json")
numbers = app.topic(name("in"), schema=schema)
out = app.topic(name("out"), schema=schema)


@app.agent(numbers)
async def copy(stream):
    async for key, one in stream.items():
        await out.send(key=key, value=one)


def expected(inputs: Numbers):
    return in_order(inputs)
