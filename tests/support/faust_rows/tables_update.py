from __future__ import annotations

from collections import Counter

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`table.update(...)`, `table.pop(key)`"
GROUP = "Tables"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)
counts = app.Table("counts", default=int)


@app.agent(numbers)
async def count(stream):
    async for key, number in stream.items():
        counts.update({key: counts[key] + 1})
        await out.send(key=key, value=counts[key])


def expected(inputs: Numbers):
    seen, found = Counter(), []
    for key, _ in inputs:
        seen[key] += 1
        found.append((key, seen[key]))
    return in_order(found)
