from __future__ import annotations

from faust.sensors.statsd import StatsdMonitor

from support.faust_row import name, row_app

FEATURE = "`StatsdMonitor`, `DatadogMonitor`"
GROUP = "Sensors and web"
VERDICT = "refused"
HOW = "as in Faust where the package `statsd` or `datadog` is missing; this project does not install them"
SAYS = "statsd"

app = row_app(Monitor=StatsdMonitor)
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for number in stream:
        await out.send(value=number)
