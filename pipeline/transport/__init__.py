"""Faust, batch-native, on librdkafka, exactly once. Registered as the Faust transport `headwater://`.

How a record goes: `reader` (the thread that owns librdkafka's consumer) -> `backlog` (queues by partition, fair)
-> `consumer` (slices: deliver, wait for the acks, end) -> an agent, as a `Batch` -> `transaction` (one commit a slice:
outputs, changelogs, offsets). `participant` is how state and sources follow the slices. `producer` is what Faust
sends with; `questions` asks the broker beside the consumer; `follower` reads a topic outside the group.

This package knows nothing of DynamoDB.
"""

from pipeline.transport.batch import Batch, BatchSchema, batches
from pipeline.transport.driver import Transport
from pipeline.transport.follower import Follower
from pipeline.transport.participant import Participant, Slice, Source

__all__ = ["Batch", "BatchSchema", "Follower", "Participant", "Slice", "Source", "Transport", "batches"]
