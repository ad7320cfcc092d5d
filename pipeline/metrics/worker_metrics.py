"""Every metric, declared once. Counts are of committed work: a slice that was aborted counts nothing."""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

from pipeline.transport import Participant, Slice


class Metrics(Participant):
    """The metrics of one worker. Labels are agents, sinks and stages: never keys, never IDs."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second line a metric that nobody reads
        self.registry = CollectorRegistry()
        self.changes = Counter(
            "headwater_changes", "Changes that an agent has processed and committed.", ["agent"], registry=self.registry
        )
        self.duplicates = Counter(
            "headwater_duplicates_dropped", "Changes dropped because their event ID was seen.", registry=self.registry
        )
        self.snapshot_rows = Counter(
            "headwater_snapshot_rows",
            "Rows of snapshots: written to raw, or superseded by the stream.",
            ["outcome"],
            registry=self.registry,
        )
        self.dead_letters = Counter(
            "headwater_dead_letters", "Messages rejected to the dead-letter topic.", ["stage"], registry=self.registry
        )
        self.sunk = Counter(
            "headwater_sink_records", "Records written to a sink topic.", ["sink"], registry=self.registry
        )
        self.flow_changes = Counter(
            "headwater_flow_changes",
            "Changes that a flow has worked on: taken (sent, or left out by a step), rejected, parked.",
            ["flow", "outcome"],
            registry=self.registry,
        )
        self.delivered = Counter(
            "headwater_delivered",
            "What a lake, a mirror, a replica or Pub/Sub has taken: files, rows, records, items.",
            ["destination", "kind"],
            registry=self.registry,
        )
        self.slices = Counter(
            "headwater_slices", "Slices by outcome: committed, aborted.", ["outcome"], registry=self.registry
        )
        self.gaps = Counter(
            "headwater_gaps",
            "Gaps written to the gaps topic: changes known to be lost.",
            ["cause"],
            registry=self.registry,
        )
        self.partitions = Gauge("headwater_partitions", "Partitions that this worker works on.", registry=self.registry)
        self.open_shards = Gauge("headwater_open_shards", "Shards that this worker is reading.", registry=self.registry)
        self._pending: Tally[tuple[Counter, tuple[str, ...]]] = Tally()

    def count(self, metric: Counter, amount: int, *labels: str) -> None:
        """Count within the slice under way."""
        if amount:
            self._pending[metric, labels] += amount

    def committed(self, work: Slice) -> None:
        """Count what the slice did."""
        self.slices.labels("committed").inc()
        for (metric, labels), amount in self._pending.items():
            (metric.labels(*labels) if labels else metric).inc(amount)
        self._pending.clear()

    def aborted(self, work: Slice) -> None:
        """Count nothing: it will be processed again."""
        self.slices.labels("aborted").inc()
        self._pending.clear()
