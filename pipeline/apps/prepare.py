"""Puts our forms of Faust's classes in the place of the usual ones, and looks at the settings."""

from __future__ import annotations

from typing import Any, cast

import faust
import faust.app.router
from faust.types import AppT

from pipeline.apps.agent import Agent
from pipeline.apps.replies import Replies
from pipeline.apps.router import Router
from pipeline.apps.settings import look_at
from pipeline.apps.stream import Stream
from pipeline.apps.topic import Topic
from pipeline.state.table import Table
from pipeline.transport.base import BaseTransport

CLASSES: dict[str, tuple[type, type]] = {
    "Agent": (faust.agents.Agent, Agent),
    "Router": (faust.app.router.Router, Router),
    "Stream": (faust.Stream, Stream),
    "Topic": (faust.Topic, Topic),
}
"""The setting, the class that it has by default, and ours."""


def prepare(app: AppT) -> None:
    """Prepare an app that has read its settings; raises ImproperlyConfigured for a setting that cannot be kept."""
    conf: Any = app.conf
    look_at(app)
    for name, (usual, ours) in CLASSES.items():
        if getattr(conf, name) is usual:
            object.__setattr__(conf, name, ours)
    if conf.store.scheme == "headwater" and conf.Table is faust.Table:
        object.__setattr__(conf, "Table", Table)
    if conf.web_enabled and conf.web_tables_enabled:
        cast("BaseTransport", app.transport).serves_at = str(conf.canonical_url)
    app.__dict__["_reply_consumer"] = Replies(app, beacon=app.beacon)
