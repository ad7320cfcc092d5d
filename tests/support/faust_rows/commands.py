from __future__ import annotations

from collections import Counter

import faust

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`@app.command()`; `faust agents`, `faust models`, `faust tables`, `faust reset`, `faust clean-versions`"
GROUP = "Commands"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)
counts = app.Table("counts", default=int, help="numbers of each key")


class Order(faust.Record):
    number: int


@app.agent(numbers)
async def count(stream):
    """Count numbers."""
    async for key, _ in stream.items():
        counts[key] += 1
        await out.send(key=key, value=counts[key])


@app.command()
async def greet():
    """Say hello."""
    print("hello from a command")


def expected(inputs: Numbers):
    seen, found = Counter(), []
    for key, _ in inputs:
        seen[key] += 1
        found.append((key, seen[key]))
    return in_order(found)
