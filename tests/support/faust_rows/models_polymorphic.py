from __future__ import annotations

import json

import faust

from support.faust_row import Numbers, in_order, name, row_app, written

FEATURE = "Records of several types in one topic: `allow_blessed_key=True`"
GROUP = "Models"
VERDICT = "works"
HOW = ""

app = row_app()


class Shape(faust.Record, namespace="shape", allow_blessed_key=True):
    number: int


class Square(Shape, namespace="square"):
    number: int


class Circle(Shape, namespace="circle"):
    number: int


numbers = app.topic(name("in"), key_type=str, value_type=Shape)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, one in stream.items():
        assert type(one) is (Square if one.number % 2 else Circle)
        await out.send(key=key, value=one.number)


def inputs():
    return [
        ("in", key, json.dumps({"number": number, "__faust": {"ns": "square" if number % 2 else "circle"}}).encode())
        for key, number in written()
    ]


def expected(inputs: Numbers):
    return in_order(inputs)
