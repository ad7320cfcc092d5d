"""The topics: their names, their partitions, how they are kept. Made at start where they are missing, never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.errors import UsageError
from pipeline.limits import HEADROOM
from pipeline.settings.enrich import TOPIC
from pipeline.settings.flows import FlowSettings, fill, is_template
from pipeline.settings.root import Settings
from pipeline.settings.sinks import LakeSettings
from pipeline.settings.sources import DynamoDBStreamSettings

MAX_BYTES = "max.message.bytes"
FENCE_PARTITIONS = 16
"""Partitions of the shards topic: more than there will be workers, so that shards spread."""
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it should be."""

    name: str
    partitions: int
    purpose: str
    config: Mapping[str, str] = field(default_factory=dict)
    spare: int = 0
    """Bytes of `max.message.bytes` that it can do without, where the cluster does not allow them: see `HEADROOM`."""

    @property
    def needed(self) -> int:
        """Bytes that a record must be able to have; 0: nothing is said of that."""
        return max(0, int(self.config.get(MAX_BYTES, 0)) - self.spare)


class Topics:
    """The names of all topics of a deployment, and how each is made."""

    def __init__(self, settings: Settings, flows: Sequence[FlowSettings] | None = None) -> None:
        """`flows` are others than those of the settings."""
        self._settings = settings
        self._flows = settings.flows if flows is None else flows
        self.ingest = self._name("ingest")
        self.raw = self._name("raw")
        self.shards = self._name("shards")
        self.seen = self._name("seen")
        self.delivered = self._name("delivered")
        self.dead_letter = self._name("dead-letter")
        self.gaps = self._name("gaps")
        self.flows = self._name("flows")
        self.retry = self._name("retry")
        self.flow_state = self._name("flow-state")
        self.dead_letter_states = self._name("dead-letter-states")
        self.sink_states = self._name("sink-states")
        self.lake_schemas = self._name("lake-schemas")
        self.replays = self._name("replays")

    def _name(self, rest: str) -> str:
        return f"{self._settings.prefix}.{rest}"

    def sink(self, name: str) -> str:
        """Return the topic of a sink."""
        return self._name(f"sink.{name}")

    def enriched(self, name: str) -> str:
        """Return the topic that a flow publishes on its way (`through`)."""
        return self._name(f"enriched.{name}")

    def reference(self, table: str) -> str:
        """Return the compacted topic that holds the current items of a reference table."""
        return self._name(f"reference.{table}")

    @property
    def sinks(self) -> dict[str, str]:
        """Sink names and their topics, in the order in which the flows name them; of templates those that are known."""
        names = [sink for flow in self._flows for template in flow.sinks for sink in self._filled(flow, template)]
        return {name: self.sink(name) for name in names}

    @property
    def lake_sinks(self) -> dict[str, str]:
        """The sinks whose messages the lake can read, and their topics: changes as AWS gives them, in JSON, no tombstones."""
        other = {
            sink
            for flow in self._flows
            if (flow.envelope.kind, flow.format.kind) != ("dynamodb", "json") or flow.leaves == "tombstone"
            for template in flow.sinks
            for sink in self._filled(flow, template)
        }
        return {name: topic for name, topic in self.sinks.items() if name not in other}

    def sinks_of(self, lake: LakeSettings) -> dict[str, str]:
        """Return the sinks that a lake takes, and their topics; raise UsageError for one that it cannot."""
        if unknown := [name for name in lake.sinks if name not in self.lake_sinks]:
            raise UsageError(
                f"lake.sinks: no flow with the envelope dynamodb in JSON has the sink {unknown[0]}",
                hint=f"one of {', '.join(self.lake_sinks) or 'none'}; headwater check",
            )
        return {name: topic for name, topic in self.lake_sinks.items() if not lake.sinks or name in lake.sinks}

    def _filled(self, flow: FlowSettings, template: str) -> list[str]:
        if not is_template(template):
            return [template]
        tables = flow.tables or tuple(
            table
            for source in self._settings.sources
            for table in (source.tables if isinstance(source, DynamoDBStreamSettings) else source.streams)
            if not set("*?") & set(table)
        )
        if "{op}" in template or "{source}" in template:  # made when the first change goes there
            return []
        return [fill(template, table=table, op="", source="") for table in tables]

    @property
    def through(self) -> list[str]:
        """The topics that flows publish on their way."""
        return [self.enriched(flow.through) for flow in self._flows if flow.through]

    @property
    def references(self) -> dict[str, str]:
        """Reference tables and their topics."""
        return {
            table: self.reference(table)
            for flow in self._flows
            for table in flow.references
            if not table.startswith(TOPIC)
        }

    def late(self, name: str) -> Topic:
        """Return the topic of a sink that was not known before a change went there."""
        large = {MAX_BYTES: str(self._settings.kafka.max_message_bytes)}
        return Topic(name, self._settings.partitions, "sink of a template", {"retention.ms": "-1", **large})

    def all(self) -> list[Topic]:
        """Return every topic that the settings have use for."""
        count = self._settings.partitions
        kept = {"cleanup.policy": "delete", "retention.ms": "-1"}
        large = {MAX_BYTES: str(self._settings.kafka.max_message_bytes)}
        beside = {MAX_BYTES: str(self._settings.kafka.max_message_bytes + HEADROOM)}
        # What stays for a time by the broker's clock: that of a producer may be days off.
        timed = {"message.timestamp.type": "LogAppendTime"}
        # A worker that was away must still hear of deletions when it comes back.
        compacted = {"cleanup.policy": "compact", "delete.retention.ms": str(30 * DAY_MS)}
        window_ms = int(self._settings.dedup_window * 1500)  # the longest that a bucket of IDs is kept
        topics = [
            Topic(self.ingest, count, "changes as delivered", {"retention.ms": str(3 * DAY_MS), **timed}),
            Topic(self.raw, count, "every change once", kept),
            Topic(self.seen, count, "changelog of the seen table", {"retention.ms": str(window_ms), **timed}),
            Topic(self.delivered, count, "items that streams delivered during a snapshot", compacted),
            Topic(self.shards, FENCE_PARTITIONS, "shards and positions", compacted),
            Topic(self.dead_letter, 1, "rejected messages", {**kept, **beside}, HEADROOM),
            Topic(self.gaps, 1, "changes known to be lost", kept),
            *(Topic(name, count, f"items of {table}", compacted) for table, name in self.references.items()),
            Topic(self.flows, 1, "versions of the flows, and who runs which", compacted),
            Topic(self.retry, count, "rejected changes to be retried", {**kept, **beside}, HEADROOM),
            Topic(
                self.flow_state,
                count,
                "what flows keep: changes that wait, what was joined, items of partitioned tables",
                {**compacted, **beside},
                HEADROOM,
            ),
            Topic(self.dead_letter_states, 1, "which dead letters were retried or discarded", compacted),
            Topic(self.replays, 1, "replays, and how far they are", compacted),
            Topic(self.lake_schemas, 1, "columns of the tables in the lake", compacted),
            Topic(
                self.sink_states,
                1,
                "what a lake, a mirror, a replica or Pub/Sub cannot do just now, and why",
                compacted,
            ),
            *(Topic(name, count, "what a flow publishes on its way", kept) for name in self.through),
            *(Topic(name, count, f"sink {sink}", kept) for sink, name in self.sinks.items()),
        ]
        return [replace(topic, config={**large, **topic.config}) for topic in topics]
