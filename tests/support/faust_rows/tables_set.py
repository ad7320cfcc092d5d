from __future__ import annotations

from collections import Counter

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`app.SetTable`"
GROUP = "Tables"
VERDICT = "refused"
HOW = "keep a list as the value of a table"
SAYS = "keeps neither sets nor global tables"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)
seen = app.SetTable("seen")


@app.agent(numbers)
async def count(stream):
    async for key, number in stream.items():
        seen[key].add(number)
        await out.send(key=key, value=len(seen[key]))


def expected(inputs: Numbers):
    seen, found = Counter(), []
    for key, _ in inputs:
        seen[key] += 1
        found.append((key, seen[key]))
    return in_order(found)
