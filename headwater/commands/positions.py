"""`headwater positions`: show committed offsets, and accept a topic that was recreated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headwater.console import Json, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.operate.positions import GroupPosition

app = typer.Typer(help="Show committed offsets, and accept topics that were recreated. Exit 1 when there are problems.")


@app.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: Json = False) -> None:
    """List the committed offsets of all groups, and their problems. Exit 1 when there are any."""
    from pipeline.operate.positions import positions
    from pipeline.settings.load import load

    if context.invoked_subcommand is None:
        _print(positions(load()), as_json=as_json)


@app.command()
def accept(
    topic: Annotated[str, typer.Argument(help="A topic that was recreated, restored or truncated.")],
    at: Annotated[
        Literal["beginning", "end"] | None,
        typer.Option(
            help="Where to continue. Default: where the state of the agent ends, if that is known; at the beginning, "
            "if the topic is another log than before; else at the first offset that is left."
        ),
    ] = None,
    group: Annotated[str, typer.Option(help="Only this group, instead of all that read the topic.")] = "",
    as_json: Json = False,
) -> None:
    """Accept a topic as it is now, when workers stop because it is not the log they have read. Stop the workers first."""
    from pipeline.operate.positions import accept as go_on
    from pipeline.settings.load import load

    found = go_on(load(), topic, group, at or "", say=say)
    say("you can start the workers again")
    _print(found, as_json=as_json)


def _print(found: list[GroupPosition], *, as_json: bool) -> None:
    if as_json:
        print_json([one.json() for one in found])
    else:
        rows = [
            (
                one.group,
                one.topic,
                f"{one.partition}",
                "none" if one.offset is None else f"{one.offset}",
                f"{one.low}",
                f"{one.end}",
                one.problem,
            )
            for one in found
        ]
        print_table(("group", "topic", "partition", "committed", "first", "end", "problem"), rows)
    if any(one.problem for one in found):
        raise typer.Exit(1)
