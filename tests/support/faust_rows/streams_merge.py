from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`app.stream(...) & app.stream(...)`, `combine`: streams in one"
GROUP = "Streams"
VERDICT = "works"
HOW = ""
TOPICS = ["others"]
PENDING = True

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
others = app.topic(name("others"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.task
async def copy():
    async for number in app.stream(numbers) & app.stream(others):
        await out.send(value=number)


def inputs():
    return [("in" if number % 2 else "others", f"key-{number % 7}", b"%d" % number) for number in range(400)]


def expected(inputs: Numbers):
    return [number for _, number in inputs]
