from __future__ import annotations

import faust

from support.faust_row import name, row_app

FEATURE = "`stream.join`, `left_join`, `inner_join`, `outer_join`"
GROUP = "Streams"
VERDICT = "different"
HOW = "Faust has their names only: at the first event `NotImplementedError` ends the worker"
SAYS = "NotImplementedError"


class Order(faust.Record):
    number: int


app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=Order)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for order in stream.left_join(Order.number):
        await out.send(value=order.number)


def inputs():
    return [("in", "one", b'{"number": 1}')]
