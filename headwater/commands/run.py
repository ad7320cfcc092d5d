"""`headwater run`: start a worker."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer


def run(
    agents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="AGENT",
            help="The agents to run: ingest, deduplicate, transform, lake, or one of lake.NAME, mirror.NAME, replica.NAME, "
            "pubsub.NAME. Default: all that the settings have work for.",
        ),
    ] = None,
    web: Annotated[
        bool, typer.Option("--web/--without-web", help="Whether to serve /livez, /readyz and /metrics.")
    ] = True,
    loglevel: Annotated[
        str, typer.Option("--loglevel", "-l", help="How much is logged: debug, info, warn or error.")
    ] = "info",
) -> None:
    """Start a worker."""
    from headwater.console import say
    from headwater.worker import COMMAND
    from pipeline.packages.own_packages import hidden
    from pipeline.runtime.app import create_app
    from pipeline.settings.load import load

    if agents:
        os.environ["HEADWATER_AGENTS"] = json.dumps(agents)
    if not web:
        os.environ["HEADWATER_WEB__ENABLED"] = "false"
    settings = load()
    for hiding in hidden():
        say(f"warning: {hiding}; rename it if a function of yours imports it")
    create_app(settings).worker.prepare()  # what is missing is said here, in one line
    command = [sys.executable, *COMMAND, "-A", "pipeline.worker", "worker", "-l", loglevel]
    command += [] if settings.web.enabled else ["--without-web"]
    os.execv(sys.executable, command)  # noqa: S606 - the worker takes this process's place: signals reach it
