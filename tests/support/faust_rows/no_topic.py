from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "A topic that does not exist"
GROUP = "What goes wrong"
VERDICT = "refused"
HOW = "the worker says which, and does not wait for it"
SAYS = "do not exist"

app = row_app()


@app.agent(app.topic(name("nowhere"), value_type=int))
async def copy(stream):
    async for _number in stream:
        pass
