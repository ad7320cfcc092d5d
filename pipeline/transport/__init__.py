"""Faust, batch-native, on librdkafka, exactly once. Registered as the Faust transport `headwater://`.

How a record goes: `reader` (the thread that owns librdkafka's consumer) -> `backlog` (queues by partition, fair)
-> `consumer` (slices: deliver, wait for the acks, end) -> an agent, as a `Batch` -> `transaction` (one commit a slice:
outputs, changelogs, offsets). `participant` is how state and sources follow the slices. `producer` is what Faust
sends with; `questions` asks the broker beside the consumer; `follower` reads a topic outside the group.

This package knows nothing of DynamoDB.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.transport.batch import Batch, BatchSchema, batches
    from pipeline.transport.driver import Transport
    from pipeline.transport.follower import Follower
    from pipeline.transport.participant import Participant, Slice, Source

__all__ = ["Batch", "BatchSchema", "Follower", "Participant", "Slice", "Source", "Transport", "batches"]
MODULES = {
    **dict.fromkeys(("Batch", "BatchSchema", "batches"), "batch"),
    "Transport": "driver",
    "Follower": "follower",
    **dict.fromkeys(("Participant", "Slice", "Source"), "participant"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: commands that take a client or a reader from here do without Faust."""
    if name in MODULES:
        return getattr(import_module(f"pipeline.transport.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
