"""Deduplication as Faust's own documentation would write it: an agent, a table, one event at a time.

Arguments: servers, group, input, output, state directory, `kafka` or `headwater`: whose transport and store. Nothing else of
the app is another.
"""

from __future__ import annotations

import sys
from typing import Any

import faust
from faust.types import StreamT

STORES = {"kafka": "rocksdb://?driver=rocksdict", "headwater": "headwater://"}


def build(servers: str, group: str, source: str, output: str, directory: str, transport: str = "kafka") -> faust.App:
    """Build the app, with the commit interval of the others and without a web server."""
    app = faust.App(
        group,
        broker=f"{transport}://{servers}",
        store=STORES[transport],
        datadir=directory,
        topic_partitions=4,
        topic_replication_factor=1,
        topic_disable_leader=True,
        broker_commit_interval=0.1,
        web_enabled=False,
        key_serializer="raw",
        value_serializer="raw",
    )
    changes = app.topic(source, key_type=bytes, value_type=bytes)
    unique = app.topic(output, key_type=bytes, value_type=bytes)
    seen = app.Table("seen", key_type=bytes, value_type=bytes, partitions=4)

    @app.agent(changes)
    async def deduplicate(stream: StreamT[Any]) -> None:
        async for key, value in stream.items():
            if key not in seen:
                seen[key] = b"1"
                await unique.send(key=key, value=value)

    return app


if __name__ == "__main__":
    sys.argv, arguments = [sys.argv[0], "worker", "-l", "warn", "--without-web"], sys.argv[1:]
    build(*arguments).main()
