from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`expires=`: Kafka deletes old windows from the changelog, and a worker without state takes over"
GROUP = "Windows"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)
counts = app.Table("counts", default=int).tumbling(10.0, expires=60.0)


@app.agent(numbers)
async def count(stream):
    async for key, _number in stream.items():
        counts[key] += 1
        await out.send(key=key, value=counts[key].current())
