from __future__ import annotations

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`app.LiveCheck()`, `livecheck.case`"
GROUP = "Sensors and web"
VERDICT = "different"
HOW = "the app is not hindered by its cases; `faust livecheck` itself is not tried"

app = row_app()
livecheck = app.LiveCheck()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@livecheck.case(probability=1.0)
class Counted(livecheck.Case):
    async def run(self, number):
        pass


@app.agent(numbers)
async def copy(stream):
    async for key, number in stream.items():
        await out.send(key=key, value=number)


def expected(inputs: Numbers):
    return in_order(inputs)
