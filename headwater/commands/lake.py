"""`headwater lake`: verify and maintain lakes, and print their DDL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from headwater.console import Json, err, print_json, print_table, print_text, say
from pipeline.errors import HeadwaterError, UsageError

if TYPE_CHECKING:
    from pipeline.settings.root import Settings
    from pipeline.settings.sinks import LakeSettings
    from pipeline.sinks.lake.configured import Chosen
    from pipeline.sinks.lake.iceberg.maintain import UpkeepReport
    from pipeline.sinks.lake.maintain import Maintained
    from pipeline.sinks.lake.maintain import Progress as Told

app = typer.Typer(help="Verify and maintain lakes, and print their DDL.", no_args_is_help=True)
Prefix = Annotated[
    str,
    typer.Option("--below", help="Only files below this path, for example source_table=orders."),
]
Name = Annotated[
    str,
    typer.Option("--lake", help="Only the lake of this name. `lake` is the one without a name."),
]


@app.command()
def verify(
    below: Prefix = "",
    name: Name = "",
    url: Annotated[str, typer.Option("--url", help="A lake that is not in the settings. Implies --offline.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Only check that the files exist; do not read them.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask Kafka which offsets the lake must hold.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify that each file is complete and unaltered, and each offset is there once. Exit 1 if not.

    The offsets of a partition go from where the lake began to what its workers have committed. With --json, one line per
    lake.
    """
    from pipeline.settings.load import load

    settings = load()
    lakes = [_at(url)] if url else _of_settings(settings, name)
    if not any(lake.is_files for lake in lakes):
        raise UsageError("this lake has Iceberg tables, so there are no files to verify", hint='table = "parquet"')
    failed = False
    for lake in lakes:
        if not lake.is_files:
            say(f"{lake.name}: has Iceberg tables, no files to verify")
            continue
        asks = not (url or offline or below)
        with _going_on(lake, several=len(lakes) > 1) as went_on:
            failed |= _verify(settings, lake, below, quick=quick, asks=asks, as_json=as_json, named=len(lakes) > 1)
        failed |= bool(went_on)
    if failed:
        raise typer.Exit(1)


def _verify(
    settings: Settings, lake: Chosen, below: str, *, quick: bool, asks: bool, as_json: bool, named: bool
) -> bool:
    """Check a lake, and say what was found; whether there are problems."""
    from pipeline.sinks.lake import configured as lake_settings
    from pipeline.sinks.lake.objects import Objects
    from pipeline.sinks.lake.verify import verify_lake as check

    carried = lake_settings.carried(settings, lake) if asks else []
    lost = lake_settings.lost(settings) if asks else []
    checked = check(Objects(lake.url, make=False), below, whole=not quick, carried=carried, lost=lost)
    before = f"{lake.name}: " if named else ""
    if as_json:
        print_json({"lake": lake.name, "url": lake.url, **checked.json()})
    else:
        for problem in (*checked.lost, *checked.problems):
            print_text(f"{before}{problem.what}: {problem.path}: {problem.detail}")
        say(
            f"{before}{checked.files:,} files, {checked.rows:,} rows, {checked.bytes:,} bytes in {checked.manifests:,} "
            f"directories; {len(checked.problems):,} problems, {checked.gaps + len(checked.lost):,} gaps"
        )
        if not asks:
            say(f"{before}Kafka was not asked: missing files at the end are not noticed")
    return bool(checked.problems)


@app.command()
def maintain(
    below: Prefix = "",
    name: Name = "",
    url: Annotated[str, typer.Option("--url", help="Only the lake at this URL.")] = "",
    at_rest: Annotated[
        bool,
        typer.Option(
            "--at-rest",
            help="With --url: a lake that is not in the settings, and no worker writes to.",
        ),
    ] = False,
    size: Annotated[int, typer.Option("--size", min=1, help="Target size of a file, in MiB.")] = 128,
    older_than: Annotated[
        float,
        typer.Option("--older-than", help="Leave files alone whose newest change is younger than this, in hours."),
    ] = 2.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Merge small files into large ones, and delete orphans. Exit 1 if a lake could not be maintained.

    Workers may write at the same time. Only one run at a time may maintain a lake; a second one is refused. Readers of what
    the lake lists see each row once at any time. With --json, one line per lake.
    """
    from pipeline.settings.load import load

    settings = load()
    failed = False
    if at_rest and not url:
        raise UsageError("--at-rest needs --url", hint="headwater lake maintain --url URL --at-rest")
    lakes = [_at(url)] if at_rest else _of_settings(settings, name, url)
    for lake in lakes:
        with _going_on(lake, several=len(lakes) > 1) as went_on, _progress(lake.name or lake.url) as progress:
            if lake.is_files:
                report = _files(
                    settings,
                    lake,
                    below,
                    size=size << 20,
                    older_than_us=int((time.time() - older_than * 3600) * 1_000_000),
                    dry_run=dry_run,
                    at_rest=at_rest,
                    progress=progress,
                )
                print_json(report.json()) if as_json else _show(report)
            else:
                _tables(lake, dry_run=dry_run, as_json=as_json)
        failed |= bool(went_on)
    if failed:
        raise typer.Exit(1)


def _files(
    settings: Settings,
    lake: Chosen,
    below: str,
    *,
    size: int,
    older_than_us: int,
    dry_run: bool,
    at_rest: bool,
    progress: Told,
) -> Maintained:
    from pipeline.sinks.lake import configured as lake_settings
    from pipeline.sinks.lake import maintain as lake_maintain
    from pipeline.sinks.lake.objects import Objects

    carried = [] if at_rest else lake_settings.carried(settings, lake)
    return lake_maintain.maintain_lake(
        Objects(lake.url, make=False),
        lake.name,
        carried,
        prefix=below,
        size=size,
        older_than_us=older_than_us,
        dry_run=dry_run,
        at_rest=at_rest,
        progress=progress,
    )


def _tables(lake: Chosen, *, dry_run: bool, as_json: bool) -> None:
    """Maintain Iceberg tables, and show what was done."""
    from pipeline.sinks.lake.iceberg import maintain as iceberg_maintain

    wanted = cast("LakeSettings", lake.settings)
    catalog = {"warehouse": lake.url, **wanted.catalog}
    report = iceberg_maintain.maintain_tables(catalog, wanted.namespace, dry_run=dry_run, progress=say)
    if as_json:
        tables = [asdict(table) for table in report.tables]
        print_json({"lake": lake.name, "dry_run": dry_run, "tables": tables, "requests": report.requests})
        return
    _show_tables(lake.name, report)


def _show_tables(name: str, report: UpkeepReport) -> None:
    rows = []
    for table in report.tables:
        sizes = table.files_before, table.files_after, table.bytes_before, table.bytes_after
        counts = table.compacted, table.snapshots, table.orphans, table.tombstones
        rows.append((table.table, *(f"{number:,}" for number in (*sizes, *counts))))
    heads = "table", "files before", "after", "bytes before", "after", "compacted", "snapshots", "orphans", "tombstones"
    if rows:
        print_table(heads, rows)
    else:
        print_text(f"{name}: there are no tables yet.")
    for left in (left for table in report.tables for left in table.left):
        say(f"{name}: {left}")
    if report.requests is not None:
        say(f"{name}: {', '.join(f'{count:,} {kind}' for kind, count in report.requests.items())}")


# -- what both do -----------------------------------------------------------------------------------------------------


def _of_settings(settings: Settings, name: str, url: str = "") -> list[Chosen]:
    from pipeline.sinks.lake import configured as lake_settings

    known = {lake.url.rstrip("/") for lake in [settings.lake, *settings.lakes] if lake.url is not None}
    if url and url.rstrip("/") not in known:
        raise UsageError(
            f"there is no lake {url} in the settings, so it is not known what its workers have committed",
            hint="--at-rest if no worker writes to it",
        )
    return lake_settings.choose_all(settings, name, url)


def _at(url: str) -> Chosen:
    """Return a lake of files that is not in the settings."""
    from pipeline.sinks.lake.configured import Chosen

    return Chosen(url, "", {})


@contextmanager
def _going_on(lake: Chosen, *, several: bool) -> Iterator[list[HeadwaterError]]:
    """Report the error of one of several lakes and continue with the others; yields the errors."""
    errors: list[HeadwaterError] = []
    try:
        yield errors
    except HeadwaterError as error:
        if not several:
            raise
        say(f"{lake.name}: {error}")
        errors.append(error)


@contextmanager
def _progress(name: str) -> Iterator[Told]:
    """Show how far it is, where somebody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("directories")
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        task = shown.add_task(name, total=None)
        yield lambda done, of: shown.update(task, completed=done, total=of)


def _show(report: Maintained) -> None:
    rows = []
    for directory in report.directories:
        if directory["before"] != directory["after"] or directory["orphans"]:
            after = f"{directory['bytes_after']:,}" if directory["bytes_after"] else ""
            deleted = directory["before"] - directory["after"] + directory["orphans"]
            counts = (
                f"{directory['before']}",
                f"{directory['after']}",
                f"{directory['rows']:,}",
                f"{directory['bytes_before']:,}",
            )
            rows.append((directory["directory"], *counts, after, f"{deleted}"))
    name = report.lake or report.url
    if rows:
        print_table(("directory", "files before", "after", "rows", "bytes before", "after", "deleted"), rows)
    else:
        print_text(f"{name}: nothing to do.")
    for left in report.left:
        say(f"{name}: {left}")
    asked = report.requests
    say(
        f"{name}: {report.files_before:,} small files {'would become' if report.dry_run else 'became'} {report.files_after:,}, "
        f"{report.orphans:,} orphans, {report.entries:,} entries; {report.seconds:.1f} s; "
        f"{asked.list:,} LIST, {asked.get:,} GET, {asked.head:,} HEAD, {asked.put:,} PUT, {asked.delete:,} DELETE; "
        f"{asked.bytes_in:,} bytes read, {asked.bytes_out:,} written"
    )


@app.command()
def ddl(
    engine: Annotated[
        Literal["athena", "duckdb", "spark", "trino"], typer.Option("--engine", help="The query engine.")
    ],
    name: Name = "",
    url: Annotated[str, typer.Option("--url", help="A lake of files that is not in the settings.")] = "",
    as_json: Json = False,
) -> None:
    """Print the statements that create the tables of a lake in a query engine. Changes nothing.

    The columns are those of the newest files. Print the statements again when there are new columns.
    """
    from pipeline.settings.load import load
    from pipeline.sinks.lake import configured as lake_settings
    from pipeline.sinks.lake import ddl as lake_ddl
    from pipeline.sinks.lake import series
    from pipeline.sinks.lake.objects import Objects

    if url:
        objects = Objects(url, make=False)
        printed = list(lake_ddl.statements(engine, lake_ddl.lake_tables(objects, series.known_path(objects, ""))))
    else:
        printed = []
        for lake in lake_settings.choose_all(load(), name):
            wanted = cast("LakeSettings", lake.settings)
            if lake.is_files:
                objects = Objects(lake.url, make=False)
                tables = lake_ddl.lake_tables(objects, series.known_path(objects, wanted.path))
                printed += lake_ddl.statements(engine, tables)
            else:
                found = lake_ddl.registered({"warehouse": lake.url, **wanted.catalog}, wanted.namespace)
                printed += lake_ddl.registrations(engine, found)
    if not printed:
        say("no lake has tables yet")
    if as_json:
        print_json(printed)
    for statement in printed if not as_json else ():
        print_text(f"{statement}\n")
