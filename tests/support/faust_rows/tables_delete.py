from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`del table[key]`, `setdefault`, `in`, `get`"
GROUP = "Tables"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)
counts = app.Table("counts")


@app.agent(numbers)
async def count(stream):
    async for key, number in stream.items():
        if key in counts and number % 5 == 0:
            del counts[key]
        counts.setdefault(key, 0)
        counts[key] = counts.get(key) + 1
        await out.send(key=key, value=counts[key])


def expected(inputs: Numbers):
    seen, found = {}, []
    for key, number in inputs:
        if number % 5 == 0:
            seen.pop(key, None)
        seen[key] = seen.get(key, 0) + 1
        found.append((key, seen[key]))
    return in_order(found)
