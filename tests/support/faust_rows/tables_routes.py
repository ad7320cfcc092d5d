from __future__ import annotations

from support.faust_row import name, row_app

FEATURE = "`@app.table_route`, `@app.topic_route`, `/table/NAME/KEY/`, `/router/`: over several workers"
GROUP = "Tables"
VERDICT = "works"
HOW = ""

app = row_app(consumer_group_instance_id=None)  # a static member keeps the address that it had at first
numbers = app.topic(name("in"), key_type=str, value_type=int)
out = app.topic(name("out"), key_type=str, value_type=int)
counts = app.Table("counts", default=int)


@app.agent(numbers)
async def count(stream):
    async for key, _ in stream.items():
        counts[key] += 1
        await out.send(key=key, value=counts[key])


@app.page("/count/{word}/")
@app.table_route(table=counts, match_info="word")
async def show(web, request, word):
    return web.json({word: counts[word]})
