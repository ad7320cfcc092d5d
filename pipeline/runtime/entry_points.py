"""Which agents are installed, and which of them a worker runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from pipeline.settings.root import Settings
from pipeline.topics.names import Topics

AGENTS = "headwater.agents"
"""Entry-point group: the name of an agent, and the function that attaches it to a worker."""


def known_agents() -> Mapping[str, EntryPoint]:
    """Return the agents that are installed, by name. Not loaded: boto3 and pyarrow take a while."""
    return {entry.name: entry for entry in entry_points(group=AGENTS)}


def wanted_agents(settings: Settings) -> tuple[str, ...]:
    """Return the agents that a worker runs: those named, or all that the settings have work for."""
    if settings.destination is not None:
        return (settings.destination[0],)  # of [[mirrors]], [[replicas]], [[lakes]]
    if settings.agents:
        return settings.agents
    has_work = {
        "ingest": settings.sources,
        "transform": settings.flows,
        "lake": settings.lake.url and Topics(settings).lake_sinks,
        "mirror": None,  # they are named
        "replica": None,
        "pubsub": None,
    }
    return tuple(name for name in known_agents() if has_work.get(name, True))
