from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`@app.timer(seconds)`; `on_leader=True`"
GROUP = "Channels and time"
VERDICT = "works"
HOW = ""
KEYS = ["timer", "leader"]

app = row_app()
out = app.topic(name("out"), key_type=str, value_type=int)


@app.timer(0.2)
async def tick():
    await out.send(key="timer", value=1)


@app.timer(0.2, on_leader=True)
async def lead():
    await out.send(key="leader", value=1)
