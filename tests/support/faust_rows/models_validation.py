from __future__ import annotations

import json

import faust
from faust.models.fields import StringField

from support.faust_row import Numbers, in_order, name, row_app, written

FEATURE = "Fields with rules (`StringField(min_length=1)`), `is_valid()`"
GROUP = "Models"
VERDICT = "works"
HOW = ""

app = row_app()


class Order(faust.Record):
    note: str = StringField(min_length=1)
    number: int = 0


numbers = app.topic(name("in"), key_type=str, value_type=Order)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, one in stream.items():
        assert not Order("").is_valid()
        await out.send(key=key, value=one.number)


def inputs():
    return [("in", key, json.dumps({"note": "a", "number": number}).encode()) for key, number in written()]


def expected(inputs: Numbers):
    return in_order(inputs)
