from __future__ import annotations

from faust.serializers import codecs

from support.faust_row import Numbers, in_order, name, row_app, written

FEATURE = "A codec of one's own, `faust.serializers.codecs.register`; `raw`, `binary`, `|`"
GROUP = "Models"
VERDICT = "works"
HOW = ""

app = row_app()


class Reversed(codecs.Codec):
    def _dumps(self, obj):
        return obj[::-1]

    def _loads(self, s):
        return s[::-1]


codecs.register("reversed", Reversed())
numbers = app.topic(name("in"), key_type=str, value_type=int, value_serializer="json|reversed")
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, one in stream.items():
        await out.send(key=key, value=one)


def inputs():
    return [("in", key, str(number).encode()[::-1]) for key, number in written()]


def expected(inputs: Numbers):
    return in_order(inputs)
