"""The command `headwater`: data to stdout, progress to stderr; exit 0 fine, 1 problems found, 2 usage."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from headwater.console import err, out
from headwater.groups import LazyGroup
from pipeline.errors import HeadwaterError

app = typer.Typer(
    name="headwater",
    help="Every change of a DynamoDB table in Kafka: once, in order, enriched, routed, replayable.",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


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
        from pipeline.packages import missing

        explained = missing.explained(error)
        if explained is None or "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        err.print(f"headwater: {explained}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(explained.exit_code)
    sys.exit(0)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

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
