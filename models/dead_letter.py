"""A dead letter: a message that a step rejected, untouched, with the reason in its headers."""

from __future__ import annotations

from dataclasses import dataclass, replace

PREFIX = "__connect.errors."
"""The header names of Kafka Connect's dead-letter queues, so that the tools made for those work here."""
FLOW = "headwater.flow"
"""Header of what a flow has rejected: its name."""
SEALED = "headwater.sealed"
"""Header of a letter whose key, value and reason are sealed in its value: the fingerprint of the key that opens it."""
VALUE_LEFT_OUT = "headwater.value_left_out"
"""Header of a letter whose value is too large for the topic of dead letters: its size in bytes. The value is where it came
from, as long as that keeps it."""
LONGEST_REASON = 10_000
"""Characters of a reason at most."""
TOPIC, PARTITION, OFFSET = f"{PREFIX}topic", f"{PREFIX}partition", f"{PREFIX}offset"
STAGE, REASON = f"{PREFIX}stage", f"{PREFIX}exception.message"

Headers = list[tuple[str, bytes]]
"""As the stubs of librdkafka's binding have them; None can stand for a value where somebody else writes."""


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

    def without_value(self) -> DeadLetter:
        """Return the letter without its value, and with its size."""
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
        ]
