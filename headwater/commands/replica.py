"""`headwater replica`: hold the replica against the tables that it shall equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.console import Json, out, print_json, say
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.settings.root import Settings
    from pipeline.settings.sinks import ReplicaSettings

app = typer.Typer(help="The replicas of tables in other tables.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass  # with one command alone, Typer would make it the group itself


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="The replica, where there are several.")] = "",
    segments: Annotated[
        int, typer.Option("--segments", min=1, max=1_000, help="Segments of a table that are scanned side by side.")
    ] = 4,
    as_json: Json = False,
) -> None:
    """Compare the tables of a replica with their sources, item by item. Exit 1 when something differs."""
    from rich.table import Table

    from pipeline.settings.load import load
    from pipeline.sinks.replica import verify as replica_verify

    settings = load()
    found = list(replica_verify.verify(settings, _chosen(settings, name), segments, say=say))
    if as_json:
        print_json([one.json() for one in found])
    else:
        table = Table("table", "replica", "items", "in the replica", "missing", "surplus", "different")
        for one in found:
            kinds = one.missing, one.surplus, one.different
            counts = [f"{count:,}" for count in (one.items, one.replicated, *(kind.count for kind in kinds))]
            table.add_row(", ".join(one.tables), one.replica, *counts)
        out.print(table)
        for one in found:
            for what, kind in (("missing", one.missing), ("surplus", one.surplus), ("different", one.different)):
                for key in kind.examples:
                    out.print(f"{what} in {one.replica}: {key}", markup=False, highlight=False, soft_wrap=True)
    if not all(one.equal for one in found):
        raise typer.Exit(1)


def _chosen(settings: Settings, name: str) -> ReplicaSettings:
    known = {replica.name: replica for replica in settings.replicas}
    if not known:
        raise UsageError("the settings have no replica", hint="add [[replicas]] to headwater.toml")
    if not name and len(known) == 1:
        return next(iter(known.values()))
    if name not in known:
        raise UsageError(
            f"there is no replica {name!r}" if name else f"which replica: {', '.join(known)}?",
            hint=f"headwater replica verify {next(iter(known))}",
        )
    return known[name]
