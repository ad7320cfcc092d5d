from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`agent.join`, `agent.kvjoin`, from a task"
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
    for answer in await double.join(range(10)):
        await out.send(key="join", value=answer)
