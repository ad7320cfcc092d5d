"""Flows in tests: compiled from what stands in headwater.toml, run on records without Kafka."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.change import decode
from pipeline.flows.compile import CompileContext, compile_flow
from pipeline.settings.flows import FlowSettings
from pipeline.steps import flow as steps
from pipeline.steps.enrich import Lookup


def flow(
    references: Mapping[str, Lookup] | None = None, means: CompileContext | None = None, **settings: Any
) -> steps.Flow:
    """Return a flow named f."""
    whole = {"name": "f", "to": "s", **settings}
    return compile_flow(FlowSettings.model_validate(whole), means or CompileContext(references=references or {}))


def run(flow: steps.Flow, *values: bytes, at: float = 0.0) -> list[steps.Result]:
    """Return what a flow makes of records, given as one batch."""
    return flow.run([steps.Given(n, b"key", value, decode(value), at) for n, value in enumerate(values)])


def sinks(flow: steps.Flow, value: bytes) -> list[str]:
    """Return the sinks to which a flow sends a record."""
    return [message.sink for result in run(flow, value) for message in result.messages]
