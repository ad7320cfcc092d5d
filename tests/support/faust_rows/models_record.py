from __future__ import annotations

import json

import faust

from support.faust_row import Numbers, in_order, name, row_app, written

FEATURE = "`faust.Record` as JSON"
GROUP = "Models"
VERDICT = "works"
HOW = ""

app = row_app()


class Order(faust.Record, serializer="json"):
    number: int
    note: str = ""


numbers = app.topic(name("in"), key_type=str, value_type=Order)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, one in stream.items():
        await out.send(key=key, value=one.number)


def inputs():
    return [("in", key, json.dumps({"number": number}).encode()) for key, number in written()]


def expected(inputs: Numbers):
    return in_order(inputs)
