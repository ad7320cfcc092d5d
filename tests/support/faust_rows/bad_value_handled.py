from __future__ import annotations

import faust

from support.faust_row import Numbers, name, row_app

FEATURE = "A `Topic` of one's own, with `on_value_decode_error`"
GROUP = "Models"
VERDICT = "works"
HOW = ""


class Careful(faust.Topic):
    async def on_value_decode_error(self, exc, message):
        await out.send(key="bad", value=message.value.decode())


app = row_app(Topic=Careful)
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_serializer="json")


@app.agent(numbers)
async def copy(stream):
    async for number in stream:
        await out.send(key="good", value=number)


def inputs():
    return [("in", "one", b"no number" if number % 10 == 0 else b"%d" % number) for number in range(400)]


def expected(inputs: Numbers):
    return {"bad": ["no number"] * 40, "good": [number for number in range(400) if number % 10]}
