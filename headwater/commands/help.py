"""`headwater help`: the help of a command."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def help_of(
    context: typer.Context,
    command: Annotated[list[str] | None, typer.Argument(help="The command. Default: all commands are listed.")] = None,
) -> None:
    """Show the help of a command, like --help."""
    root: Any = context.find_root()
    root.command.main([*(command or ()), "--help"], prog_name=root.info_name)
