"""`headwater lake`: check the files of the lake, and make few large ones of many small ones."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from pipeline import settings as settings_module
from pipeline.console import Json, out, print_json, print_lines, say
from pipeline.errors import UsageError
from pipeline.settings import Settings
from pipeline.status import committed_offsets

app = typer.Typer(help="The Parquet files of the lake.", no_args_is_help=True)
Prefix = Annotated[
    str, typer.Option("--below", help="Only what lies below these directories: table=orders/date=2026-01-01.")
]


def _url(settings: Settings, url: str) -> str:
    if not (found := url or settings.lake.url):
        raise UsageError("there is no lake in the settings", hint="headwater lake verify --url s3://bucket/prefix")
    return found


@app.command()
def verify(
    below: Prefix = "",
    url: Annotated[str, typer.Option("--url", help="The lake; without it, lake.url of the settings.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Only see whether the files are there, do not read them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold the files against their manifests: each there, whole, unaltered; no offset missing, none twice. Exit 1 if not."""
    from pipeline.sinks.lake_verify import verify as check
    from pipeline.sinks.objects import Objects

    checked = check(Objects(_url(settings_module.load(), url)), below, whole=not quick)
    if as_json:
        print_json(checked.json())
    else:
        for problem in checked.problems:
            out.print(
                f"{problem.what}: {problem.path}: {problem.detail}", markup=False, highlight=False, soft_wrap=True
            )
        say(
            f"{checked.files:,} files, {checked.rows:,} rows, {checked.bytes:,} bytes in {checked.manifests:,} directories; "
            f"{len(checked.problems):,} problems, {checked.gaps:,} gaps"
        )
    if checked.problems:
        raise typer.Exit(1)


@app.command()
def compact(
    below: Prefix = "",
    size: Annotated[int, typer.Option("--size", help="MiB that a file is to have, about.")] = 128,
    older_than: Annotated[
        float, typer.Option("--older-than", help="Hours since the newest change of a file: younger ones stay.")
    ] = 2.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Make few large files of many small ones. Readers by manifest see each row once at any time."""
    from pipeline.sinks.lake_compact import compact as merge
    from pipeline.sinks.objects import Objects

    settings = settings_module.load()
    objects, known = Objects(_url(settings, "")), committed_offsets(settings)
    done = merge(
        objects,
        lambda topic, partition: known.get((topic, partition), 0),
        prefix=below,
        size=size << 20,
        older_than_us=int((time.time() - older_than * 3600) * 1_000_000),
        dry_run=dry_run,
    )
    if as_json:
        print_lines(one.json() for one in done)
        return
    table = Table("directory", "files before", "after", "rows")
    for one in done:
        table.add_row(one.directory, str(one.before), str(one.after), f"{one.rows:,}")
    out.print(table if table.row_count else "Nothing to do.")
