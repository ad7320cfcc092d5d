from __future__ import annotations

import json

import faust

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`stream.group_by(Model.field)`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""


class Order(faust.Record):
    number: int
    place: str


app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=Order)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, order in stream.group_by(Order.place).items():
        await out.send(key=key, value=order.number)


def inputs():
    values = [(number, f"place-{number % 5}") for number in range(400)]
    return [("in", "one", json.dumps({"number": number, "place": place}).encode()) for number, place in values]


def expected(inputs: Numbers):
    return in_order((f"place-{number % 5}", number) for number in range(400))
