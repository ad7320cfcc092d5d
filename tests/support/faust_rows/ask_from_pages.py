from __future__ import annotations

from faust.web import View

from support.faust_row import name, row_app

FEATURE = "`agent.ask`, from a page"
GROUP = "Asking"
VERDICT = "works"
HOW = ""

app = row_app()
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(value_type=int)
async def double(stream):
    async for number in stream:
        yield number * 2


@app.page("/double/{number}")
class Double(View):
    async def get(self, request, number):
        answer = await double.ask(int(number))
        await out.send(key="web", value=answer)
        return self.json({"answer": answer})
