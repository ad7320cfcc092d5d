from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`app.stream(...) & app.stream(...)`, `combine`: streams in one"
GROUP = "Streams"
VERDICT = "different"
HOW = "raises `UsageError`: Faust itself never delivers anything to a combined stream"
SAYS = "streams cannot be combined"
TOPICS = ["others"]

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
others = app.topic(name("others"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.task
async def copy():
    async for number in app.stream(numbers) & app.stream(others):
        await out.send(value=number)
