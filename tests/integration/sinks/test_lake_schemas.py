"""The columns of lake tables are decided once, by whoever is the only writer at a moment. On a real broker."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from headwater.lab.stack import Endpoints
from pipeline.sinks.lake.layouts.columns import Kind, TableSchema
from pipeline.sinks.lake.schemas import Schemas
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic
from pipeline.transport import clients

pytestmark = pytest.mark.kafka
WORKERS, ATTRIBUTES = 4, 12
KINDS: tuple[Kind, ...] = ("string", "decimal", "bool", "map")


def test_workers_that_see_attributes_at_once_decide_the_same_and_nothing_decided_changes(stack: Endpoints) -> None:
    conf: dict[str, Any] = {"bootstrap.servers": stack.bootstrap_servers}
    topic = f"t{uuid.uuid4().hex[:8]}.lake-schemas"
    ensure(admin(conf), [Topic(topic, 1, "schemas", {"cleanup.policy": "compact"})], 1)
    workers = [Schemas(cast("Any", SimpleNamespace(client_conf=lambda: conf)), topic) for _ in range(WORKERS)]

    def see(number: int) -> list[TableSchema]:
        """See attributes, spelled and typed as nobody else sees them; return what was decided of each."""
        workers[number].read()
        decided = []
        for attribute in range(ATTRIBUTES):
            name = f"a{attribute}" if number % 2 else f"A{attribute}"
            decided.append(workers[number].grow("t", TableSchema({name: KINDS[number], f"own{number}": "string"})))
        return decided

    with ThreadPoolExecutor(WORKERS) as pool:
        seen = list(pool.map(see, range(WORKERS)))
    history = decisions(conf, topic)
    for earlier, later in pairwise(history):
        assert earlier.items() <= later.items(), "only columns are added"
        assert len(later) == len({name.lower() for name in later}), "one of names alike has the column"
    assert len(history[-1]) == ATTRIBUTES + WORKERS
    for decided in (schema for worker in seen for schema in worker):
        assert dict(decided.columns) in history, "what a worker writes with was decided"
    late = Schemas(cast("Any", SimpleNamespace(client_conf=lambda: conf)), topic)
    late.read()
    assert late.of("t").columns == history[-1]


def decisions(conf: dict[str, Any], topic: str) -> list[dict[str, str]]:
    """Return all that was ever decided, in order."""
    consumer = clients.consumer(conf, topic, enable_partition_eof=True)
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    found: list[dict[str, str]] = []
    while (message := consumer.poll(30)) is not None and message.error() is None:
        found.append(msgspec.json.decode(message.value() or b"", type=dict[str, str]))
    consumer.close()
    return found
