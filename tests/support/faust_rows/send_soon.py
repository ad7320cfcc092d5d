from __future__ import annotations

from support.faust_row import Numbers, name, row_app

FEATURE = "`topic.send_soon`, `app.send`"
GROUP = "Agents"
VERDICT = "works"
HOW = "as in Faust, what is sent at once may overtake what is sent soon"

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, number in stream.items():
        if number % 2:
            out.send_soon(key=key, value=number)
        else:
            await app.send(out, key=key, value=number)


def expected(inputs: Numbers):
    return [number for _, number in inputs]
