"""The command `headwater`: data to stdout, progress to stderr; exit 0 fine, 1 problems found, 2 usage."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from headwater.commands import bench, dlq, explain, flows, gaps, lab, lake, local, look, positions, replay, replica
from headwater.commands import run as running
from headwater.commands import snapshot as snapshots
from headwater.console import err, out
from pipeline.errors import HeadwaterError

app = typer.Typer(
    name="headwater",
    help="Every change of a DynamoDB table in Kafka: once, in order, enriched, routed, replayable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(rich_help_panel="Look")(explain.explain)
app.command(rich_help_panel="Run")(running.run)
app.command(rich_help_panel="Look")(look.check)
app.command(rich_help_panel="Look")(look.status)
app.command(rich_help_panel="Run")(snapshots.snapshot)
app.command(rich_help_panel="Look")(look.topics)
app.command(rich_help_panel="Lab")(lab.demo)
app.command(rich_help_panel="Lab")(lab.chaos)
app.command(rich_help_panel="Lab")(lab.simulate)
app.add_typer(local.app, name="local", rich_help_panel="Lab")
app.add_typer(bench.app, name="bench", rich_help_panel="Lab")
app.add_typer(lab.soak, name="soak", rich_help_panel="Lab")
app.add_typer(flows.app, name="flows", rich_help_panel="Look")
app.add_typer(dlq.app, name="dlq", rich_help_panel="Repair")
app.add_typer(replica.app, name="replica", rich_help_panel="Look")
app.add_typer(lake.app, name="lake", rich_help_panel="Repair")
app.add_typer(replay.app, name="replay", rich_help_panel="Repair")
app.add_typer(gaps.app, name="gaps", rich_help_panel="Look")
app.add_typer(positions.app, name="positions", rich_help_panel="Repair")


def main() -> NoReturn:
    """Run the command; print an error as one line that says what to type next."""
    try:
        app(standalone_mode=True)
    except HeadwaterError as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        err.print(f"headwater: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"agents", "models", "pipeline"}:
            raise
        hint = "pip install 'headwater[bench]' has all extras, [lake] what writes Parquet files"
        err.print(
            f"headwater: the package {error.name} is not here ({hint})", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(1)
    sys.exit(0)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"headwater {version('headwater')}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    main()
