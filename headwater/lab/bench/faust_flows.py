"""The flows of the benchmark as Faust's own documentation would write them: an agent, one event at a time.

Arguments: servers, group, input, output, reference topic, state directory, task. The steps are those for Quix Streams.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import faust
import orjson
from faust.types import StreamT


def steps() -> ModuleType:
    """Load the steps of the other program; of its framework nothing is needed."""
    sys.modules["quixstreams"] = SimpleNamespace(Application=None)  # type: ignore[assignment]
    spec = importlib.util.spec_from_file_location("quix_flows", Path(__file__).parent / "quix" / "flows.py")
    if spec is None or spec.loader is None:
        raise ImportError("quix/flows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(servers: str, group: str, source: str, output: str, table: str, directory: str, task: str) -> faust.App:
    """Build the app, with the commit interval of the others and without a web server."""
    made = steps()
    work = made.make(task, made.reference(servers, table) if task == "join_plain" else {})
    app = faust.App(
        group,
        broker=f"kafka://{servers}",
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
    sink = app.topic(output, key_type=bytes, value_type=bytes)

    @app.agent(changes)
    async def flow(stream: StreamT[Any]) -> None:
        async for key, value in stream.items():
            change = orjson.loads(value)
            result = work(change, value)
            if result is not None:
                await sink.send(key=key, value=result, headers=made.headers(change))

    return app


if __name__ == "__main__":
    sys.argv, arguments = [sys.argv[0], "worker", "-l", "warn", "--without-web"], sys.argv[1:]
    build(*arguments).main()
