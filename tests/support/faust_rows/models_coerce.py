from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal

import faust

from support.faust_row import Numbers, in_order, name, row_app, written

FEATURE = "`coerce=True`: datetimes, decimals"
GROUP = "Models"
VERDICT = "works"
HOW = ""

app = row_app()


class Order(faust.Record, coerce=True, date_parser=datetime.fromisoformat):
    at: datetime
    price: Decimal


numbers = app.topic(name("in"), key_type=str, value_type=Order)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, one in stream.items():
        assert one.at.year == 2026
        await out.send(key=key, value=int(one.price * 2) // 2)


def inputs():
    return [
        ("in", key, json.dumps({"at": "2026-05-01T10:00:00+00:00", "price": f"{number}.00"}).encode())
        for key, number in written()
    ]


def expected(inputs: Numbers):
    return in_order(inputs)
