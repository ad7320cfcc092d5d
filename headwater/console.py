"""What the commands print with: data to stdout, words to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.errors import UsageError

out, err = Console(), Console(stderr=True)
Directory = Annotated[Path, typer.Option("--dir", help="Where the stack keeps its data.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


def print_json(data: Any) -> None:
    """Print data as one line of JSON."""
    from pipeline.files import exact_json

    sys.stdout.write(exact_json.dumps(data, ascii_only=True) + "\n")


def print_lines(rows: Iterable[Any]) -> None:
    """Print data as JSON lines, for jq and the like."""
    for row in rows:
        print_json(row)


def say(message: str) -> None:
    """Print a line for whoever watches, to stderr."""
    err.print(message, markup=False, highlight=False, soft_wrap=True)


def one_of(option: str, value: str, *choices: str) -> Any:
    """Return the value of an option; raise UsageError when it is none of the choices."""
    if value not in choices:
        raise UsageError(f"{option} {value}: expected one of {', '.join(choices)}", hint="headwater --help")
    return value
