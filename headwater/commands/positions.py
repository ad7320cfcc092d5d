"""`headwater positions`: where the agents are in their topics; and how to go on in a topic that was recreated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headwater.console import Json, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.operate.positions import GroupPosition

app = typer.Typer(help="Where the agents are in their topics.")


@app.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: Json = False) -> None:
    """List the committed offsets of all groups, and what is wrong with them. Exit 1 when something is."""
    from pipeline.operate.positions import positions
    from pipeline.settings.load import load

    if context.invoked_subcommand is None:
        _print(positions(load()), as_json=as_json)


@app.command()
def accept(
    topic: Annotated[str, typer.Argument(help="A topic that was recreated, restored or cut off.")],
    at: Annotated[
        Literal["beginning", "end"] | None,
        typer.Option(
            help="Where to go on. Without it, where the state of the agent ends if that is known; at the "
            "beginning of another log than the one read before; else at the first offset that is left."
        ),
    ] = None,
    group: Annotated[str, typer.Option(help="One of the groups that read it, instead of all.")] = "",
    as_json: Json = False,
) -> None:
    """Go on in a topic as it is now, when workers stop because it is not the log that they have read. Stop them first."""
    from pipeline.operate.positions import accept as go_on
    from pipeline.settings.load import load

    found = go_on(load(), topic, group, at or "", say=say)
    say("the workers may be started again")
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
                "nothing" if one.offset is None else f"{one.offset}",
                f"{one.low}",
                f"{one.end}",
                one.problem,
            )
            for one in found
        ]
        print_table(("group", "topic", "partition", "committed", "first", "end", "problem"), rows)
    if any(one.problem for one in found):
        raise typer.Exit(1)
