from __future__ import annotations

import json

import faust

from support.faust_row import Numbers, in_order, name, row_app, written

FEATURE = "Records in records, in lists and in mappings"
GROUP = "Models"
VERDICT = "works"
HOW = ""

app = row_app()


class Line(faust.Record):
    number: int


class Order(faust.Record):
    first: Line
    lines: list[Line]
    names: dict[str, Line]


numbers = app.topic(name("in"), key_type=str, value_type=Order)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, one in stream.items():
        assert one.first == one.lines[0] == one.names["a"]
        await out.send(key=key, value=one.first.number)


def inputs():
    return [
        (
            "in",
            key,
            json.dumps(
                {"first": {"number": number}, "lines": [{"number": number}], "names": {"a": {"number": number}}}
            ).encode(),
        )
        for key, number in written()
    ]


def expected(inputs: Numbers):
    return in_order(inputs)
