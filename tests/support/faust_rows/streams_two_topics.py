from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "A topic of several names, `app.topic(a, b)`"
GROUP = "Streams"
VERDICT = "works"
HOW = ""
TOPICS = ["others"]

app = row_app()
numbers = app.topic(name("in"), name("others"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for number in stream:
        await out.send(value=number)


def inputs():
    return [("in" if number % 2 else "others", f"key-{number % 7}", b"%d" % number) for number in range(400)]


def expected(inputs: Numbers):
    return [number for _, number in inputs]
