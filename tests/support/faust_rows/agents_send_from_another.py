from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`agent.ask`, `map`, `join` inside of an agent"
GROUP = "Asking"
VERDICT = "different"
HOW = "raises `UsageError`: the answer would come with the commit that waits for it; `cast`, `reply_to=` and sinks work"
SAYS = "inside an agent: the answer comes when this event is committed"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(value_type=int)
async def double(stream):
    async for number in stream:
        yield number * 2


@app.agent(numbers)
async def ask(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=await double.ask(number))


def expected(inputs: Numbers):
    return in_order((key, number * 2) for key, number in inputs)
