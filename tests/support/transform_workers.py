"""Workers with the agent transform, and raw to write to: for tests of what goes on between raw and the sinks."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics
from support.fleet import Fleet
from support.waiting import until


class Flowing:
    """Workers with the agent transform on topics of their own, and raw to write to."""

    def __init__(
        self,
        stack: Endpoints,
        directory: Path,
        flows: list[dict[str, Any]],
        *,
        prefix: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        own = {"HEADWATER_AGENTS": '["transform"]', "HEADWATER_FLOWS": json.dumps(flows), **(variables or {})}
        self.fleet = Fleet(stack, directory, own, partitions=2, prefix=prefix or f"t{uuid.uuid4().hex[:8]}")
        self.flows = flows
        self.topics = self.use(flows)
        ensure(admin(self.fleet.conf), self.topics.all(), 1)
        self._producer = Producer({**self.fleet.conf, "partitioner": "murmur2_random"})
        self._number = 0

    def use(self, flows: list[dict[str, Any]]) -> Topics:
        settings = {"prefix": self.fleet.prefix, "partitions": 2, "flows": flows}
        return Topics(Settings.model_validate(settings))

    def environment(self, flows: list[dict[str, Any]] | None = None) -> dict[str, str]:
        """What a command reads; with other flows than the workers have."""
        own = {} if flows is None else {"HEADWATER_FLOWS": json.dumps(flows)}
        return {**self.fleet.environment, **own}

    def change(
        self,
        key: str | Mapping[str, Any],
        item: Mapping[str, Any] | None,
        table: str = "orders",
        *,
        flush: bool = True,
        headers: Mapping[str, bytes] | None = None,
        old: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a change to raw, as deduplicate does; without an item, a deletion; without `flush`, with the next flushed one.

        `key` is that of the attribute id, or the key attributes; `old` is the item before.
        """
        self._number += 1
        keys = _typed({"id": key} if isinstance(key, str) else key)
        image = {} if item is None else {"NewImage": {**keys, **_typed(item)}}
        if item is None or old is not None:
            image["OldImage"] = {**keys, **_typed(old or {})}
        value = {
            "eventID": f"e{self._number}",
            "eventName": "REMOVE" if item is None else "MODIFY",
            "tableName": table,
            "dynamodb": {"Keys": keys, **image},
        }
        key_bytes = json.dumps(keys, separators=(",", ":"), sort_keys=True).encode()
        self._producer.produce(self.topics.raw, json.dumps(value).encode(), key_bytes, headers=dict(headers or {}))
        if flush:
            assert self._producer.flush(20) == 0

    def references(self) -> int:
        """How many items the reference table of customers has."""
        with Recorder(self.fleet.conf, self.topics.reference("customers")) as recorder:
            until(lambda: recorder.is_at_end(self.fleet.conf), "the end of the reference topic")
            return len({record.key() for record in recorder})

    @contextmanager
    def recorded(self, topic: str) -> Iterator[Recorder]:
        with Recorder(self.fleet.conf, topic) as recorder:
            yield recorder


def _typed(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"N": str(value)} if isinstance(value, int) else {"S": value} for name, value in item.items()}
