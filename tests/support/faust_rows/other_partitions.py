from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "A table on a topic with another number of partitions"
GROUP = "What goes wrong"
VERDICT = "different"
HOW = "the worker ends at the first event, and names the two numbers"
SAYS = "the topic that is processed another number"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)
counts = app.Table("counts", default=int, partitions=2)


@app.agent(numbers)
async def count(stream):
    async for key, number in stream.items():
        counts[key] += 1
        await out.send(key=key, value=counts[key])


def inputs():
    return [("in", "one", b"1")]
