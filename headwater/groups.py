"""The table of the commands, and the group that loads each of them when it is chosen.

`headwater --help` and the completion show lines of the table and load nothing. A test compares them with the commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, slots=True)
class Line:
    """A line of `headwater --help`, and where the command is."""

    panel: str
    target: str
    """Module in `headwater.commands`, and the name of a function or of a group in it."""
    help: str


COMMANDS: Mapping[str, Line] = {
    "run": Line("Run", "run:run", "Start a worker."),
    "snapshot": Line(
        "Run",
        "snapshot:snapshot",
        "Read all items of tables into raw, as changes of the kind READ, while their streams are captured.",
    ),
    "check": Line(
        "Look", "look:check", "Check everything that a worker needs, and say what to type next. Changes nothing."
    ),
    "status": Line(
        "Look",
        "look:status",
        "Show shards and positions, lag, dead letters, gaps, replays, and what is stuck.",
    ),
    "topics": Line("Look", "look:topics", "List the topics: what each is for, and whether it exists."),
    "gaps": Line(
        "Look",
        "gaps:app",
        "List and repair gaps: changes that are known to be lost. Exit 1 when a gap is not repaired.",
    ),
    "flows": Line("Look", "flows:app", "Check, test, show and apply flows."),
    "explain": Line(
        "Look",
        "explain:explain",
        "Show what each flow does with an event: which condition decided, what each step did, where it would go.",
    ),
    "replica": Line("Look", "replica:app", "Verify replicas: DynamoDB tables that are kept equal to others."),
    "help": Line("Look", "help:help_of", "Show the help of a command, like --help."),
    "dlq": Line("Repair", "dlq:app", "List, show, retry, edit and discard dead letters: messages that were rejected."),
    "replay": Line(
        "Repair",
        "replay:app",
        "Run past changes through the flows again, compare the result with the live topics, promote it.",
    ),
    "lake": Line("Repair", "lake:app", "Verify and maintain lakes, and print their DDL."),
    "positions": Line(
        "Repair",
        "positions:app",
        "Show committed offsets, and accept topics that were recreated. Exit 1 when there are problems.",
    ),
    "demo": Line(
        "Lab",
        "lab:demo",
        "Carry changes from DynamoDB to Parquet on this machine, and prove that none is lost, duplicated or reordered.",
    ),
    "local": Line("Lab", "local:app", "Run a Kafka broker and stand-ins for AWS on this machine."),
    "simulate": Line(
        "Lab",
        "lab:simulate",
        "Simulate DynamoDB tables or Kinesis streams until Ctrl-C. Prints the AWS_ENDPOINT_URL for boto3.",
    ),
    "chaos": Line(
        "Lab",
        "lab:chaos",
        "Disturb workers, broker and topics under load, and prove that nothing is lost, duplicated, reordered or stuck.",
    ),
    "soak": Line("Lab", "lab:soak", "Run for a while under all kinds of faults, and prove the result."),
    "bench": Line("Lab", "bench:app", "Measure Headwater against peers, on this machine."),
}


class Group(TyperGroup):
    """A group whose help comes at once."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options of the group itself. For one of Typer's own that is None, Typer would import pydantic."""
        options: list[Any] = super().get_params(ctx)
        for option in options:
            if option.default is None and option.type_descriptor.annotation is bool:
                option.default = False
        return options


def loaded(name: str) -> TyperCommand | TyperGroup:
    """Import the module of a command, and return the command."""
    line = COMMANDS[name]
    module, _, attribute = line.target.partition(":")
    target = getattr(import_module(f"headwater.commands.{module}"), attribute)
    alone = typer.Typer()
    if isinstance(target, typer.Typer):
        alone.add_typer(target, name=name, cls=Group, rich_help_panel=line.panel)
    else:
        alone.command(name, rich_help_panel=line.panel)(target)
    return cast("TyperCommand | TyperGroup", typer.main.get_group(alone).commands[name])


def commands_of(command: Any) -> dict[str, Any]:
    """Return the commands of a group by name, loaded; nothing for a command that has none."""
    names = COMMANDS if isinstance(command, LazyGroup) else ()
    return {name: loaded(name) for name in names} or dict(getattr(command, "commands", {}))


class LazyGroup(Group):
    """The commands of the table. What its help shows of each is a line; the command that is chosen is loaded."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, line in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line.help, rich_help_panel=line.panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that the first word names, loaded; end with an error when there is none."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, loaded(name) if name else command, rest
