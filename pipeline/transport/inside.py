"""Whether code runs for an event: then what it sends belongs to the slice of that event, else to nobody's."""

from __future__ import annotations

from contextvars import ContextVar

from faust.agents.agent import current_agent
from faust.streams import current_event

in_stream: ContextVar[bool] = ContextVar("in_stream", default=False)
"""Set in the task that iterates over a stream, and in the tasks that it starts."""


def is_inside() -> bool:
    """Say whether this task is an agent's, or iterates over a stream."""
    return in_stream.get() or current_agent() is not None or current_event() is not None
