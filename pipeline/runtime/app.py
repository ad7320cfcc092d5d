"""Builds the Faust app: settings in, app out. Nothing here connects; that happens when the worker starts."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import UsageError
from pipeline.runtime.entry_points import known_agents, wanted_agents
from pipeline.runtime.faust_app import App
from pipeline.runtime.web import add_pages
from pipeline.runtime.worker import Worker
from pipeline.settings.root import Settings

Attach = Callable[[Worker], None]


def create_app(settings: Settings) -> App:
    """Build the app with the agents that the settings ask for; raise UsageError for one that does not exist."""
    worker = Worker(settings)
    add_pages(worker)
    known = known_agents()
    for name in wanted_agents(settings):
        if name not in known:
            raise UsageError(f"there is no agent {name!r}", hint=f"headwater run {' '.join(known)}")
        attach: Attach = known[name].load()
        attach(worker)
    return worker.app
