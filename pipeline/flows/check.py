"""What is wrong with a flow, as far as can be said where no worker is: what `check` and `flows apply` refuse."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.flows.compile import FlowError, compile_flow, onlooking, parts_of
from pipeline.flows.lint import lint
from pipeline.services.keys import mask_key
from pipeline.services.lookups import lookup_headers, secrets_of
from pipeline.settings.enrich import TOPIC, EnrichSettings, JoinSettings, LookupSettings, SqlSettings
from pipeline.settings.flows import FlowSettings
from pipeline.settings.load import line_of_setting
from pipeline.settings.root import Settings
from pipeline.settings.sources import DynamoDBStreamSettings
from pipeline.sources.dynamodb.streams import is_pattern
from pipeline.sources.kinds import captures


def examine(settings: Settings, flow: FlowSettings) -> list[str]:
    """Compile a flow, and look for what it needs here: return what may be wrong, raise UsageError for what is.

    Neither AWS nor Kafka is asked, but AWS KMS where a mask's key needs it.
    """
    compile_flow(flow, onlooking([flow], settings.modules))
    for number, step in enumerate(flow.enrich):
        if isinstance(step, LookupSettings):
            try:
                lookup_headers(step, os.environ)
            except UsageError as error:
                raise FlowError(flow, f"enrich.{number}.headers", error) from error
            try:
                secrets_of(step, os.environ)
            except UsageError as error:
                raise FlowError(flow, f"enrich.{number}.url", error) from error
    if flow.mask and flow.mask_key is not None:
        try:
            mask_key(flow.mask_key)
        except UsageError as error:
            raise FlowError(flow, "mask_key", error) from error
    doubts = [doubt.line for doubt in doubts_of(flow)]
    if not settings.sources:  # they are those of other workers
        return doubts
    _references_are_captured(settings, flow)
    return [*_tables_are_captured(settings, flow), *doubts]


@dataclass(frozen=True, slots=True)
class Warned:
    """What can hardly have an effect, and where it is."""

    flow: str
    place: str
    """In the flow."""
    problem: str
    at: str
    """file:line; '' when the flow is not in the settings file."""

    @property
    def line(self) -> str:
        """All of it in a line."""
        before = f"{self.at}: " if self.at else ""
        return f"{before}flow {self.flow}, {self.place}: {self.problem}"


def doubts_of(flow: FlowSettings) -> list[Warned]:
    """Return what of a flow can hardly have an effect."""
    return [
        Warned(flow.name, doubt.place, doubt.problem, line_of_setting(flow, parts_of(doubt.place)))
        for doubt in lint(flow)
    ]


def _references_are_captured(settings: Settings, flow: FlowSettings) -> None:
    for number, step in enumerate(flow.enrich):
        for table in _read_by(step):
            if not _captured(settings, table):
                problem = f"reads the table {table}, which no source captures: it would never find anything"
                raise FlowError(flow, f"enrich.{number}", UsageError(problem, hint=_add(table)))


def _read_by(step: EnrichSettings) -> list[str]:
    """Return the captured tables that a step reads."""
    if isinstance(step, JoinSettings):
        return [] if step.table is None else [step.table]
    return [table for table in step.tables if not table.startswith(TOPIC)] if isinstance(step, SqlSettings) else []


def _tables_are_captured(settings: Settings, flow: FlowSettings) -> list[str]:
    missing = [table for table in flow.tables if not _captured(settings, table)]
    if not missing:
        return []
    problem = f"no source captures {', '.join(missing)}"
    if all(
        isinstance(source, DynamoDBStreamSettings) and not any(map(is_pattern, source.tables))
        for source in settings.sources
    ):
        raise FlowError(flow, "from", UsageError(f"{problem}: it would get nothing", hint=_add(missing[0])))
    return [f"flow {flow.name}, from: {problem} by name"]


def _captured(settings: Settings, table: str) -> bool:
    return any(captures(source, table) for source in settings.sources)


def _add(table: str) -> str:
    return f"add {table!r} to the tables of [[sources]]"
