"""What the commands print with: data to stdout, words to stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, RenderableType

from pipeline.errors import UsageError

out, err = Console(), Console(stderr=True)
Directory = Annotated[Path, typer.Option("--dir", help="Directory of the local stack's data.")]
Aws = Literal["ministack", "dynamodb-local"]
Broker = Literal["auto", "kafka", "noida"]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
NUMBER = re.compile(r"(about )?-?[\d,.]{0,20}%?")
UNBOUNDED = 1_000_000
"""Columns of characters of what is not a terminal."""
LEAST = 12
"""Columns of characters that a text keeps at least when a table is folded."""


def print_json(data: Any) -> None:
    """Print data as one line of JSON."""
    from pipeline.files import exact_json

    sys.stdout.write(exact_json.dumps(data, ascii_only=True) + "\n")


def print_lines(rows: Iterable[Any]) -> None:
    """Print data as JSON lines, for jq and the like."""
    for row in rows:
        print_json(row)


def print_text(text: str, style: str = "", end: str = "\n") -> None:
    """Print text as it is, to stdout: nothing in it is markup, and it is neither cut nor wrapped."""
    out.print(text, style=style or None, end=end, markup=False, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print a line for whoever watches, to stderr."""
    err.print(message, markup=False, highlight=False, soft_wrap=True)


def one_of(option: str, value: str, *choices: str) -> Any:
    """Return the value of an option; raise UsageError when it is none of the choices."""
    if value not in choices:
        raise UsageError(f"{option} {value}: expected one of {', '.join(choices)}", hint="headwater --help")
    return value


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], to: Console | None = None) -> None:
    """Print a table, to stdout unless another console is given, every cell whole.

    On a terminal that is too narrow for it, texts are folded, the widest first, and numbers never are. Where that is not
    enough, each row is printed as lines of its own. When the output is not a terminal, a table is as wide as it needs to be.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    to = to or out
    cells = [list(row) for row in rows]
    columns = [[row[at] for row in cells] for at in range(len(heads))]
    numbers = [all(NUMBER.fullmatch(cell) for cell in column) for column in columns]
    widths = [max(map(cell_len, [head, *column])) for head, column in zip(heads, columns, strict=True)]
    words = [max(map(cell_len, head.split())) for head in heads]
    least = [
        max(word, max(map(cell_len, column), default=0) if number else min(LEAST, width))
        for word, column, number, width in zip(words, columns, numbers, widths, strict=True)
    ]
    frame = 3 * len(heads) + 1
    if to.is_terminal:
        _narrow(widths, least, to.width - frame)
        if sum(widths) > to.width - frame:
            _print_rows(heads, cells, to)
            return
    table = Table()
    for head, width, number in zip(heads, widths, numbers, strict=True):
        table.add_column(Text(head), width=width, overflow="fold", justify="right" if number else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    print_drawn(table, to)


def print_drawn(drawing: RenderableType, to: Console | None = None) -> None:
    """Print a table or a tree; when the output is not a terminal, as wide as it is."""
    to = to or out
    (to if to.is_terminal else Console(file=to.file, width=UNBOUNDED)).print(drawing)


def _narrow(widths: list[int], least: Sequence[int], room: int) -> None:
    """Take from the widest columns until all have room, or none can give any more."""
    while sum(widths) > room:
        giving = [at for at, width in enumerate(widths) if width > least[at]]
        if not giving:
            return
        widths[max(giving, key=widths.__getitem__)] -= 1


def _print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]], to: Console) -> None:
    """Print each row as lines: a head, and what the row has there."""
    wide = max(map(len, heads))
    for row in rows:
        for head, cell in zip(heads, row, strict=True):
            to.print(f"{head:<{wide}}  {cell}", markup=False, highlight=False, soft_wrap=True)
        to.print()
