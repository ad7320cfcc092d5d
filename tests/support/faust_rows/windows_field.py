from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import faust

from support.faust_row import Numbers, name, row_app

FEATURE = "`.relative_to_field(Model.field)`"
GROUP = "Windows"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


class Order(faust.Record, coerce=True):
    at: datetime


numbers = app.topic(name("in"), key_type=str, value_type=Order)
counts = app.Table("counts", default=int).tumbling(60.0, expires=3_600.0).relative_to_field(Order.at)


@app.agent(numbers)
async def count(stream):
    async for key, number in stream.items():
        counts[key] += 1
        await out.send(key=key, value=counts[key].value())


def inputs():
    begin = datetime(2030, 1, 1, tzinfo=UTC)
    times = [(begin + timedelta(seconds=number)).isoformat() for number in range(400)]
    return [("in", "one", json.dumps({"at": time}).encode()) for time in times]


def expected(inputs: Numbers):
    return {"one": [number % 60 + 1 for number in range(400)]}
