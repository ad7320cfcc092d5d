"""`headwater lake`: check the files of the lake, and make few large ones of many small ones."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from pipeline import settings as settings_module
from pipeline.console import Json, out, print_json, print_lines, say
from pipeline.errors import UsageError

app = typer.Typer(help="The Parquet files of the lake.", no_args_is_help=True)
Prefix = Annotated[
    str,
    typer.Option(
        "--below", help="Only what lies below these directories: source_table=orders/changed_date=2026-01-01."
    ),
]


Name = Annotated[str, typer.Option("--lake", help="The lake of [[lakes]], by its name; without it, that of [lake].")]


@app.command()
def verify(
    below: Prefix = "",
    name: Name = "",
    url: Annotated[str, typer.Option("--url", help="A lake that is not in the settings; implies --offline.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Only see whether the files are there, do not read them.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask Kafka up to which offset the lake must reach.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold the files against what should be there: each whole, unaltered; no offset missing, none twice. Exit 1 if not.

    What should be there of a partition goes from where the lake began to the offset that its workers have committed.
    """
    from pipeline.sinks import lake_settings
    from pipeline.sinks.lake_verify import verify as check
    from pipeline.sinks.objects import Objects

    settings = settings_module.load()
    lake = None if url else lake_settings.choose(settings, name)
    asks = lake is not None and not (offline or below)
    carried = lake_settings.carried(settings, lake) if lake is not None and asks else []
    lost = lake_settings.lost(settings) if asks else []
    place = url if lake is None else lake.url
    checked = check(Objects(place, make=False), below, whole=not quick, carried=carried, lost=lost)
    if as_json:
        print_json(checked.json())
    else:
        for problem in (*checked.lost, *checked.problems):
            out.print(
                f"{problem.what}: {problem.path}: {problem.detail}", markup=False, highlight=False, soft_wrap=True
            )
        say(
            f"{checked.files:,} files, {checked.rows:,} rows, {checked.bytes:,} bytes in {checked.manifests:,} directories; "
            f"{len(checked.problems):,} problems, {checked.gaps + len(checked.lost):,} gaps"
        )
        if not asks:
            say("Kafka was not asked: a missing end is not seen")
    if checked.problems:
        raise typer.Exit(1)


@app.command()
def compact(
    below: Prefix = "",
    name: Name = "",
    size: Annotated[int, typer.Option("--size", help="MiB that a file is to have, about.")] = 128,
    older_than: Annotated[
        float, typer.Option("--older-than", help="Hours since the newest change of a file: younger ones stay.")
    ] = 2.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Make few large files of many small ones. Readers by manifest see each row once at any time."""
    from pipeline.sinks import lake_settings
    from pipeline.sinks.lake_compact import compact as merge
    from pipeline.sinks.objects import Objects
    from pipeline.transport.logs import UNKNOWN

    settings = settings_module.load()
    lake = lake_settings.choose(settings, name)
    carried = lake_settings.carried(settings, lake)
    logs = {one.topic: one.log for one in carried}
    ends = {
        (one.topic, one.partition): one.committed.offset or 0 for one in carried if one.committed.log.may_be(one.log)
    }
    done = merge(
        Objects(lake.url, make=False),
        lambda topic, partition: ends.get((topic, partition), 0),
        log_of=lambda topic: logs.get(topic, UNKNOWN),
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


@app.command()
def ddl(
    engine: Annotated[str, typer.Option("--engine", help="athena, duckdb, spark or trino.")],
    name: Name = "",
    url: Annotated[str, typer.Option("--url", help="A lake of files that is not in the settings.")] = "",
) -> None:
    """Print the statements that make the lake tables of an engine. Nothing is changed.

    The columns are those of the newest files: print them again when new ones have come.
    """
    from pipeline.sinks import lake_ddl, lake_settings, series
    from pipeline.sinks.objects import Objects

    if engine not in lake_ddl.ENGINES:
        raise UsageError(f"--engine {engine}: expected one of {', '.join(lake_ddl.ENGINES)}")
    settings = settings_module.load()
    lake = None if url else lake_settings.lake_of(settings, name)
    if lake is not None and lake.url is None:
        raise UsageError("there is no lake in the settings", hint="--lake NAME, or --url s3://bucket/prefix")
    if lake is not None and lake.table == "iceberg":
        found = lake_ddl.registered({"warehouse": lake.url or "", **lake.catalog}, lake.namespace)
        printed = list(lake_ddl.registrations(engine, found))
    else:
        objects = Objects(url or (lake.url if lake is not None else None) or "", make=False)
        path = series.known_path(objects, lake.path if lake is not None else "")
        printed = list(lake_ddl.statements(engine, lake_ddl.tables_of(objects, path)))
    if not printed:
        say("the lake has no table yet")
    for statement in printed:
        out.print(f"{statement}\n", markup=False, highlight=False, soft_wrap=True)
