"""Puts our forms of Faust's classes in the place of the usual ones, and looks at the settings."""

from __future__ import annotations

from typing import Any, cast

import faust
import faust.app.router
from faust.types import AppT

from pipeline.apps.agent import Agent
from pipeline.apps.replies import Replies
from pipeline.apps.router import Router
from pipeline.apps.settings import look_at, peek
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

RESUBSCRIBE_S = 1.0
"""Seconds after which a stream that is made while the worker runs gets its topic; Faust waits for 45."""


def prepare(app: AppT) -> None:
    """Prepare an app that has read its settings; raises ImproperlyConfigured for a setting that cannot be kept."""
    conf: Any = app.conf
    look_at(app)
    for name, (usual, ours) in CLASSES.items():
        if peek(conf, name) is usual:
            object.__setattr__(conf, name, ours)
    if peek(conf, "Table") is faust.Table:
        object.__setattr__(conf, "Table", Table)
    cast("BaseTransport", app.transport).tells_url = True
    cast("Any", app.topics)._resubscribe_sleep_lock_seconds = RESUBSCRIBE_S  # noqa: SLF001 - Faust has no setting for it
    app.__dict__["_reply_consumer"] = Replies(app, beacon=app.beacon)
