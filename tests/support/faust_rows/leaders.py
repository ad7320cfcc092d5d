from __future__ import annotations

import os

from support.faust_row import name, row_app

FEATURE = "`on_leader=True` with several workers: one of them"
GROUP = "Channels and time"
VERDICT = "works"
HOW = ""

app = row_app()
out = app.topic(name("out"), key_type=str, value_type=int)


@app.timer(0.2, on_leader=True)
async def lead():
    await out.send(key="leader", value=os.getpid())


@app.timer(0.2)
async def tick():
    await out.send(key="all", value=os.getpid())
