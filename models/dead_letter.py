"""A dead letter: a message that a step rejected, untouched, with the reason in its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

PREFIX = "__connect.errors."
"""The header names of Kafka Connect's dead-letter queues, so that the tools made for those work here."""
FLOW = "headwater.flow"
"""Header of what a flow has rejected: its name."""
SEALED = "headwater.sealed"
"""Header of a dead letter whose key, value and reason are sealed in its value: the fingerprint of the key that opens it."""
VALUE_LEFT_OUT = "headwater.value_left_out"
"""Header of a dead letter whose value is too large for its topic: its size in bytes. The value is where it came
from, as long as that keeps it."""
LONGEST_REASON = 10_000
"""Characters of a reason at most."""
TOPIC, PARTITION, OFFSET = f"{PREFIX}topic", f"{PREFIX}partition", f"{PREFIX}offset"
STAGE, REASON = f"{PREFIX}stage", f"{PREFIX}exception.message"

LATE = "late"
"""Header of a change that comes after a newer one of its item, or may do so: the time of that one, in microseconds."""
ORIGIN = "headwater.origin."
"""How the headers begin that say where a record of a stream was which the agent `ingest` has rejected."""

Headers = list[tuple[str, bytes]]
"""As the stubs of librdkafka's binding have them; None can stand for a value where somebody else writes."""


class Origin(NamedTuple):
    """Where a record of a stream was that could not be read: with its value, all that it takes to read it again."""

    stream: str
    """ARN."""
    shard: str = ""
    sequence: str = ""
    table: str = ""
    """The table; of a stream that is not a table's, the stream's name."""
    partition_key: str | None = None
    """Of Kinesis."""
    arrived: float | None = None
    """When Kinesis took it, in seconds since the epoch."""
    part: str = ""
    """Which one it was of those that a producer had packed into one record: `:0`, `:1`, ..."""
    form: str = ""
    """`lambda`: its value is a member of a Lambda event; '': what the stream holds."""

    @property
    def headers(self) -> Headers:
        """Return what is known, as headers."""
        known = {name: value for name, value in self._asdict().items() if value not in {None, ""}}
        return [(f"{ORIGIN}{name.replace('_', '-')}", str(value).encode()) for name, value in known.items()]


def origin_in(headers: Mapping[str, str]) -> Origin | None:
    """Return where a dead letter's record was, from its headers; None when they do not say it."""
    said = {
        name.removeprefix(ORIGIN).replace("-", "_"): value for name, value in headers.items() if name.startswith(ORIGIN)
    }
    if not said.get("stream"):
        return None
    arrived = said.get("arrived")
    texts = {name: said.get(name, "") for name in ("stream", "shard", "sequence", "table", "part", "form")}
    return Origin(**texts, partition_key=said.get("partition_key"), arrived=None if arrived is None else float(arrived))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What goes to the dead-letter topic: key, value and headers as they came, and what was wrong with them."""

    topic: str
    partition: int
    offset: int
    stage: str
    error: Exception
    key: bytes | None
    value: bytes | None
    original_headers: Headers
    flow: str = ""
    """The flow that rejected it; ''."""
    sealed: str = ""
    """The fingerprint of the key that its value is sealed with; ''."""
    origin: Origin | None = None
    """Where it was in its stream, when `ingest` could not read it."""

    def without_value(self) -> DeadLetter:
        """Return the dead letter without its value, and with its size."""
        left_out = (VALUE_LEFT_OUT, str(len(self.value or b"")).encode())
        return replace(self, value=None, original_headers=[*self.original_headers, left_out])

    @property
    def headers(self) -> Headers:
        """The original headers, then where the message came from and why it was rejected."""
        return [
            *self.original_headers,
            (TOPIC, self.topic.encode()),
            (PARTITION, str(self.partition).encode()),
            (OFFSET, str(self.offset).encode()),
            (STAGE, self.stage.encode()),
            (f"{PREFIX}exception.class.name", type(self.error).__name__.encode()),
            (REASON, str(self.error)[:LONGEST_REASON].encode(errors="replace")),
            *([(FLOW, self.flow.encode())] if self.flow else []),
            *([(SEALED, self.sealed.encode())] if self.sealed else []),
            *(self.origin.headers if self.origin is not None else []),
        ]
