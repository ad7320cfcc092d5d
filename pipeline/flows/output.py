"""What flows write: messages to sink topics, dead letters sealed where the flow masks attributes."""

from __future__ import annotations

import logging
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from models.dead_letter import DeadLetter
from pipeline.errors import RejectedError
from pipeline.flows.running_flow import RunningFlow
from pipeline.runtime.worker import Worker
from pipeline.steps.flow import Given, Result
from pipeline.steps.secrecy import MaskKey, WrongKeyError, is_sealed, open_letter, seal_letter

log = logging.getLogger(__name__)
STAGE = "transform"


class FlowOutput:
    """Writes what flows make, and what they reject, into the slice."""

    def __init__(self, worker: Worker, flows: Callable[[], Sequence[RunningFlow]]) -> None:
        """`flows` are those that run."""
        self._worker, self._flows, self._topics = worker, flows, worker.topics
        self.keys: dict[str, MaskKey] = {}
        """Of all flows that have masked since this process began: what waited in one that is gone is sealed with it."""
        self._topics_of: dict[str, str] = {}
        """The topics of sinks that are there."""
        self._known = {topic.name for topic in worker.topics.all()}

    def flow(self, name: str) -> RunningFlow | None:
        """Return the flow of a name that runs."""
        return next((flow for flow in self._flows() if flow.settings.name == name), None)

    def send(self, flow: RunningFlow, partition: int, results: Iterable[Result]) -> None:
        """Write the messages of changes. An item stays in its partition; one whose key is masked goes where that belongs."""
        sunk: Tally[str] = Tally()
        records: list[tuple[str, bytes | None, bytes | None, int, Any]] = []
        origins: list[tuple[str, int, int]] = []
        name, transaction = flow.settings.name, self._worker.transport.transaction
        for result in results:
            given_key = result.given.key
            for message in result.messages:
                sink, key = message.sink, message.key
                origin = name, partition, result.given.offset
                try:
                    topic = self._topics_of.get(sink) or self._topic(flow, sink)
                except RejectedError as error:
                    transaction.refuse(origin, error)
                    continue
                records.append((topic, key, message.value, partition if key is given_key else -1, message.headers))
                origins.append(origin)
                sunk[sink] += 1
        transaction.produce_many(records, origins)
        for sink, count in sunk.items():
            if sink:
                self._worker.metrics.count(self._worker.metrics.sunk, count, sink)

    def _topic(self, flow: RunningFlow, sink: str) -> str:
        """Return the topic of a sink, or of what the flow publishes on its way (''); make it where it is not there."""
        topic = self._topics.sink(sink) if sink else self._topics.enriched(flow.settings.through or "")
        if topic not in self._known:
            self._worker.require_topic(topic)
            self._known.add(topic)
        if sink:
            self._topics_of[sink] = topic
        return topic

    def reject(self, flow: str, partition: int, given: Given, error: Exception) -> None:
        """Write a dead letter of a flow, sealed where it masks attributes."""
        headers = list(given.headers)
        letter = DeadLetter(
            self._topics.raw, partition, given.offset, STAGE, error, given.key, given.value, headers, flow
        )
        key = self._sealing_key(flow, given.change.table)
        self._worker.write_dead_letter(letter if key is None else seal_letter(key, letter))

    def _key(self, flow: str) -> MaskKey | None:
        """Return the key of a flow's masks; of one that is gone, what it was here."""
        running = self.flow(flow)
        return self.keys.get(flow) if running is None else running.key

    def _sealing_key(self, flow: str, table: str) -> MaskKey | None:
        """Return the key that seals a flow's dead letters; of a flow that is gone, that of any that masks the table."""
        if self.flow(flow) is not None or flow in self.keys:
            return self._key(flow)
        masking = (one.key for one in self._flows() if not one.steps.tables or table in one.steps.tables)
        return next(filter(None, masking), None)

    def opened(self, flow: str, key: bytes | None, value: bytes) -> tuple[bytes | None, bytes]:
        """Return key and value of a dead letter, as they were before it was sealed."""
        if not is_sealed(value):
            return key, value
        if (mask := self._key(flow)) is None:
            raise WrongKeyError("the dead letter is sealed, and its flow has no key")
        secret = open_letter(mask, value)
        return secret.key, secret.value or b""
