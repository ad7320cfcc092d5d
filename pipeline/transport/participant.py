"""What follows the slices: state that is written after the commit, and sources that bring records in from outside."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from confluent_kafka import Producer as RdProducer
from faust.types import TP, ConsumerMessage

from pipeline.transport.batch import Batch


@dataclass(slots=True)
class Slice:
    """The work of one transaction: what was delivered, the offsets to commit with it, and the producer to write with."""

    producer: RdProducer
    messages: Sequence[ConsumerMessage] = ()
    offsets: dict[TP, int] = field(default_factory=dict)
    """For each partition the offset of the next record to read. A participant may hold an offset back or add one."""

    @property
    def records(self) -> int:
        """How many records were delivered; what a source has offered counts as one."""
        return sum(len(batch) if isinstance(batch := message.value, Batch) else 1 for message in self.messages)

    def of(self, topic: str) -> list[ConsumerMessage]:
        """Return what was delivered from this topic, in order."""
        return [message for message in self.messages if message.topic == topic]


class Participant:
    """Follows the slices of a worker. Register with `transport.add_participant(participant)` before the worker starts.

    Guarantees: for each slice `finish` is called once, before the flush, unless the slice was given up earlier; then
    exactly one of `committed` and `aborted`. These three run in the transaction's thread, one at a time, never
    while an agent has a batch of the slice; the others run on the event loop, between slices.
    """

    fence: str = ""
    """A topic whose partitions are assigned with the others and never read by the group: who owns one owns what it
    stands for. An offset of it in `work.offsets` keeps a worker from committing that has lost the partition. '' for none."""

    positions_of: Collection[str] = ()
    """Topics of which it keeps positions: `transport.log_of` knows their logs from the subscription on."""

    def assigned(self, partitions: frozenset[TP]) -> None:
        """Partitions that this worker did not have and now has."""

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Partitions that this worker no longer has. Their last slice has been committed or aborted."""

    def due(self) -> bool:
        """Say whether there is something to finish although nothing was delivered."""
        return False

    def waits(self, tp: TP) -> bool:
        """Say whether something that was delivered of a partition is not done yet, so that its offset must stay."""
        return False

    def skipped(self, tp: TP, offset: int) -> None:
        """Continue behind records of a partition that are gone; the gap is recorded.

        On the event loop; nothing of the partition is under way. `offset` is that of the first record that is left.
        """

    def finish(self, work: Slice) -> None:
        """Write the last records of the transaction (positions, changelogs); change `work.offsets` where needed."""

    def committed(self, work: Slice) -> None:
        """Take over what the slice did: its transaction is committed."""

    def aborted(self, work: Slice) -> None:
        """Forget what the slice did: its records will be delivered again, or belong to another worker now."""


class Source(Participant):
    """Brings records in from outside Kafka. It looks like a topic whose partitions follow those of a fence topic.

    Who owns partition p of `fence` owns partition p of `topic` (no Kafka topic; its name begins with @) and may
    `consumer.offer` to it. In `finish` the source writes its positions and puts the fence's offset into
    `work.offsets`: with it the broker refuses a worker that has lost the partition.
    """

    topic: str
    fence: str


def is_virtual(topic: str) -> bool:
    """Say whether the topic is a source's, with no topic in Kafka behind it."""
    return topic.startswith("@")
