from __future__ import annotations

from support.faust_row import row_app

FEATURE = "`app.topic(pattern=...)`"
GROUP = "Streams"
VERDICT = "refused"
HOW = "Faust 0.15 takes a pattern and reads nothing; here the worker says so. A topic may have several names"
SAYS = "would never be read"

app = row_app()


@app.agent(app.topic(pattern="in-.*", value_type=int))
async def copy(stream):
    async for _number in stream:
        pass
