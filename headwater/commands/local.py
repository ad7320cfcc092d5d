"""`headwater local`: a Kafka broker and AWS stand-ins on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.console import Aws, Broker, Directory, Json, print_json, print_text, say

app = typer.Typer(help="Run a Kafka broker and stand-ins for AWS on this machine.", no_args_is_help=True)
LOCAL = Path(".headwater/local")


@app.command()
def up(
    directory: Directory = LOCAL,
    broker: Annotated[
        Broker, typer.Option(help="The broker. auto: Apache Kafka if it can run here, else noida.")
    ] = "auto",
    aws: Annotated[Aws, typer.Option(help="The stand-in for AWS.")] = "ministack",
    as_json: Json = False,
) -> None:
    """Start a broker and stand-ins for AWS. They run until `headwater local down`."""
    from headwater.lab.stack import local_up

    endpoints = local_up(
        directory,
        broker,
        aws,
        progress=say,
    )
    if as_json:
        print_json(endpoints.environment())
        return
    say(f"{endpoints.broker}: {endpoints.reason}")
    for name, value in endpoints.environment().items():
        print_text(f"export {name}={value}")


@app.command()
def down(directory: Directory = LOCAL, as_json: Json = False) -> None:
    """Stop the local stack. Its data is kept."""
    from headwater.lab.stack import local_down

    stopped = local_down(directory)
    if as_json:
        print_json([process._asdict() for process in stopped])
    else:
        say(f"stopped: {', '.join(process.name for process in stopped) or 'nothing was running'}")


@app.command(name="status")
def status(directory: Directory = LOCAL, as_json: Json = False) -> None:
    """Show what is running. Exit 1 when nothing is."""
    from headwater.lab.stack import local_status

    found = local_status(directory)
    if as_json:
        print_json([process._asdict() for process in found])
    else:
        for process in found:
            state = "running" if process.alive else "ended"
            print_text(f"{process.name}  {process.address}  pid {process.pid}  {state}")
    if not any(process.alive for process in found):
        if not found:
            say(f"no local stack in {directory}; try: headwater local up")
        raise typer.Exit(1)
