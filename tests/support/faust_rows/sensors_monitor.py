from __future__ import annotations

from faust.sensors import Monitor

from support.faust_row import Numbers, in_order, name, row_app

FEATURE = "`app.monitor`, `Sensor`, `faust_app.sensors.add`"
GROUP = "Sensors and web"
VERDICT = "works"
HOW = ""

app = row_app(Monitor=Monitor)
app.sensors.add(Monitor())
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, number in stream.items():
        assert app.monitor.events_active >= 0
        await out.send(key=key, value=number)


def expected(inputs: Numbers):
    return in_order(inputs)
