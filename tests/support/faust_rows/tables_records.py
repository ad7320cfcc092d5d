from __future__ import annotations

from collections import Counter

import faust

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "Tables of records: `value_type=`, `key_type=`"
GROUP = "Tables"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


class Count(faust.Record):
    number: int = 0


counts = app.Table("counts", key_type=str, value_type=Count, default=Count)


@app.agent(numbers)
async def count(stream):
    async for key, number in stream.items():
        known = counts[key]
        counts[key] = Count(known.number + 1)
        await out.send(key=key, value=counts[key].number)


def expected(inputs: Numbers):
    seen, found = Counter(), []
    for key, _ in inputs:
        seen[key] += 1
        found.append((key, seen[key]))
    return in_order(found)
