from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "A value that cannot be decoded"
GROUP = "What goes wrong"
VERDICT = "different"
HOW = "Faust acks it. Here the worker ends and commits nothing of it, unless the topic has `on_value_decode_error` of your own"
SAYS = "headwater: an agent failed"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for number in stream:
        await out.send(value=number)


def inputs():
    return [("in", "one", b"no number")]
