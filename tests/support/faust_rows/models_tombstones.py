from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`allow_empty=True`: records without a value"
GROUP = "Models"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int, allow_empty=True)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=-1 if number is None else number)


def inputs():
    return [("in", "one", None if number % 2 else b"%d" % number) for number in range(400)]


def expected(inputs: Numbers):
    return {"one": [-1 if number % 2 else number for number in range(400)]}
