from __future__ import annotations

from faust.web import View

from support.faust_row import name, row_app

FEATURE = "`@app.page`: pages, and `topic.send` from one"
GROUP = "Sensors and web"
VERDICT = "works"
HOW = ""

app = row_app()
out = app.topic(name("out"), key_type=str, value_type=int)


@app.page("/put/{number}")
class Put(View):
    async def get(self, request, number):
        await out.send(key="web", value=int(number))
        return self.json({"put": int(number)})
