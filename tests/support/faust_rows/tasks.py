from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`@app.task`; `on_leader=True`"
GROUP = "Channels and time"
VERDICT = "works"
HOW = ""
KEYS = ["task", "leader"]

app = row_app()
out = app.topic(name("out"), key_type=str, value_type=int)


@app.task
async def once():
    await out.send(key="task", value=1)


@app.task(on_leader=True)
async def lead():
    await out.send(key="leader", value=1)
