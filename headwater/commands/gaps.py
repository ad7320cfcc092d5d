"""`headwater gaps`: changes that are known to be lost, and how to repair that."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.commands.snapshot import Detach, take_snapshots
from headwater.console import Json, print_json, print_table, say

if TYPE_CHECKING:
    from models.gap import Gap

app = typer.Typer(
    help="List and repair gaps: changes that are known to be lost. Exit 1 when a gap is not repaired.",
    invoke_without_command=True,
)


@app.callback()
def gaps(context: typer.Context, as_json: Json = False) -> None:
    """List the gaps: which changes are lost, and why. Exit 1 when a gap is not repaired."""
    if context.invoked_subcommand is not None:
        return
    import msgspec

    from pipeline.operate.gaps import gaps as known_gaps
    from pipeline.settings.load import load

    found = known_gaps(load())
    if as_json:
        print_json([{**msgspec.to_builtins(gap), "repaired": repaired} for gap, repaired in found])
    elif found:
        _print_gaps(found)
    if not all(repaired for _, repaired in found):
        raise typer.Exit(1)


def _print_gaps(found: Sequence[tuple[Gap, bool]]) -> None:
    rows = []
    for gap, repaired in found:
        noticed = f"{datetime.fromtimestamp(gap.at, UTC):%Y-%m-%d %H:%M:%S}Z"
        if gap.topic:
            place = gap.topic, f"partition {gap.partition}", f"{gap.first - 1}", f"{gap.last + 1}", f"{gap.count:,}"
        else:
            place = gap.table, gap.shard or "all", gap.after or "", gap.before or "", ""
        rows.append((noticed, *place, gap.cause, "yes" if repaired else "no"))
    print_table(("noticed", "of", "where", "after", "before", "at most", "cause", "repaired"), rows)


@app.command()
def repair(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE", help="The tables. Default: all that have gaps.")
    ] = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Read all items of tables with gaps again, by a snapshot. Deletions within a gap stay unknown."""
    from pipeline.operate import snapshots as snapshotting
    from pipeline.operate.gaps import gaps as known_gaps
    from pipeline.operate.gaps import tables_of
    from pipeline.settings.load import load

    settings = load()
    newest = dict[str, float]()
    for gap, repaired in known_gaps(settings):
        found = [] if repaired else tables_of(gap, settings)
        newest |= {table: max(gap.at, newest.get(table, 0.0)) for table in found}
        if gap.topic and not repaired and not found:
            say(
                f"{gap.topic}[{gap.partition}]: a snapshot does not restore what a sink topic has lost; "
                "headwater replay sends it again, from raw or from the lake"
            )
    chosen = sorted(newest.keys() & set(tables) if tables else newest)
    wanted = [table for table in chosen if snapshotting.source_of_table(settings, table) is not None]
    for table in [one for one in chosen if one not in wanted]:
        say(f"{table}: no source of kind dynamodb-stream captures it, so its items cannot be read again")
    if not wanted:
        say("there is nothing to repair")
        if as_json:
            print_json([])
        return
    say("items that were deleted within a gap cannot be found: consumers keep them until they change or are compared")
    gaps = {table: newest[table] for table in wanted}
    take_snapshots(settings, gaps, snapshotting.Wish(), detach=detach, as_json=as_json)
