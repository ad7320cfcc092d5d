from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`agent.map`, `agent.kvmap`, from a task"
GROUP = "Asking"
VERDICT = "works"
HOW = ""

app = row_app()
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(value_type=int)
async def double(stream):
    async for number in stream:
        yield number * 2


@app.task
async def ask():
    async for answer in double.map(range(10)):
        await out.send(key="map", value=answer)
