from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`stream.take_with_timestamp(max_, within, field)`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_serializer="json")
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for some in stream.take_with_timestamp(50, within=0.2, timestamp_field_name="at"):
        for order in some:
            assert order["at"] > 0
            await out.send(value=order["number"])


def inputs():
    return [("in", "one", b'{"number": %d}' % number) for number in range(400)]


def expected(inputs: Numbers):
    return [number for _, number in inputs]
