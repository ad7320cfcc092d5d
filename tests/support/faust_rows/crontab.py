from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`@app.crontab(...)`"
GROUP = "Channels and time"
VERDICT = "works"
HOW = ""
KEYS = ["crontab"]

app = row_app()
out = app.topic(name("out"), key_type=str, value_type=int)


@app.crontab("* * * * * *")
async def tick():
    await out.send(key="crontab", value=1)
