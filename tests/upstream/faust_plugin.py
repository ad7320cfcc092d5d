"""A pytest plugin for Faust's own tests: applications that name no broker, or Faust's default, are on headwater://.

python -m pytest -p faust_plugin, with HEADWATER_FAUST_BROKER=headwater://host:port. Their tables are on the store headwater://.
"""

from __future__ import annotations

import os
from typing import Any

import faust
from faust.types.settings.settings import Settings

BROKER = os.environ["HEADWATER_FAUST_BROKER"]
MEMORY = "memory://"
as_it_was = faust.App.__init__
made = 0


def on_headwater(app: faust.App, *arguments: Any, **options: Any) -> None:
    """Make an application; its broker is the default that is ours now."""
    global made  # noqa: PLW0603 - for the line at the end
    made += 1
    if str(options.get("store", MEMORY)) == MEMORY:
        options["store"] = "headwater://"
    as_it_was(app, *arguments, **options)


def pytest_configure() -> None:
    """Lay ours over Faust's default."""
    Settings.DEFAULT_BROKER_URL = BROKER
    setattr(faust.App, "__init__", on_headwater)  # noqa: B010 - mypy: no method is assigned


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many applications there were, so that nobody takes tests without any for tests of the transport."""
    terminalreporter.write_line(f"applications on {BROKER.partition(':')[0]}: {made}")
