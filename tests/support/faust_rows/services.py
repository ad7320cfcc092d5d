from __future__ import annotations

from mode import Service

from support.faust_row import name, row_app

FEATURE = "`@app.service`; signals: `on_worker_init`, `on_partitions_assigned`, `on_before_shutdown`"
GROUP = "Channels and time"
VERDICT = "works"
HOW = ""

app = row_app()
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)


@app.service
class Sender(Service):
    async def on_started(self):
        await out.send(key="service", value=1)


@app.on_before_shutdown.connect
async def on_shutdown(_app, **_):
    print("before the shutdown")


@app.on_partitions_assigned.connect
async def on_assigned(_app, assigned, **_):
    print(f"assigned {len(assigned)}")


@app.on_worker_init.connect
def on_init(_app, **_):
    print("worker init")


@app.agent(numbers)
async def copy(stream):
    async for number in stream:
        await out.send(value=number)
