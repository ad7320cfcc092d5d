from __future__ import annotations

import io

import fastavro
from faust.serializers import codecs

from support.faust_row import Numbers, in_order, name, row_app, written

FEATURE = "Avro"
GROUP = "Models"
VERDICT = "different"
HOW = "Faust has no Avro of its own: a codec of some lines, as for any format"

SCHEMA = {"type": "record", "name": "Order", "fields": [{"name": "number", "type": "int"}]}


class Avro(codecs.Codec):
    def _dumps(self, obj):
        written = io.BytesIO()
        fastavro.schemaless_writer(written, SCHEMA, obj)
        return written.getvalue()

    def _loads(self, s):
        return fastavro.schemaless_reader(io.BytesIO(s), SCHEMA, None)


codecs.register("avro-order", Avro())
app = row_app()
numbers = app.topic(name("in"), key_type=str, value_serializer="avro-order")
out = app.topic(name("out"), key_type=str, value_type=int)


@app.agent(numbers)
async def copy(stream):
    async for key, order in stream.items():
        await out.send(key=key, value=order["number"])


def inputs():
    return [("in", key, Avro().dumps({"number": number})) for key, number in written()]


def expected(inputs: Numbers):
    return in_order(inputs)
