"""`headwater replica`: compare a replica with its source tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.console import Json, print_json, print_table, print_text, say
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.settings.root import Settings
    from pipeline.settings.sinks import ReplicaSettings
    from pipeline.sinks.replica.verify import Compared

app = typer.Typer(help="Verify replicas: DynamoDB tables that are kept equal to others.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass  # with one command alone, Typer would make it the group itself


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="The replica. Needed only when there are several.")] = "",
    segments: Annotated[
        int, typer.Option("--segments", min=1, max=1_000, help="Segments of each table to scan in parallel.")
    ] = 4,
    as_json: Json = False,
) -> None:
    """Compare the tables of a replica with their sources, item by item. Exit 1 when something differs."""
    from pipeline.settings.load import load
    from pipeline.sinks.replica import verify as replica_verify

    settings = load()
    found = list(replica_verify.verify_replica(settings, _chosen(settings, name), segments, say=say))
    if as_json:
        print_json([one.json() for one in found])
    else:
        _print_compared(found)
    if not all(one.equal for one in found):
        raise typer.Exit(1)


def _print_compared(found: Sequence[Compared]) -> None:
    rows = []
    for one in found:
        kinds = one.missing, one.surplus, one.different
        counts = [f"{count:,}" for count in (one.items, one.replicated, *(kind.count for kind in kinds))]
        rows.append([", ".join(one.tables), one.replica, *counts])
    print_table(("table", "replica", "items", "in replica", "missing", "surplus", "different"), rows)
    for one in found:
        for what, kind in (("missing", one.missing), ("surplus", one.surplus), ("different", one.different)):
            for key in kind.examples:
                print_text(f"{what} in {one.replica}: {key}")


def _chosen(settings: Settings, name: str) -> ReplicaSettings:
    known = {replica.name: replica for replica in settings.replicas}
    if not known:
        raise UsageError("there is no replica in the settings", hint="add [[replicas]] to headwater.toml")
    if not name and len(known) == 1:
        return next(iter(known.values()))
    if name not in known:
        raise UsageError(
            f"there is no replica {name!r}" if name else f"there are several replicas: {', '.join(known)}",
            hint=f"headwater replica verify {next(iter(known))}",
        )
    return known[name]
