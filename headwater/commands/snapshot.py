"""`headwater snapshot`: request snapshots of tables, watch them, cancel them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.console import Json, err, print_json, print_text, say
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.operate import snapshots as snapshotting
    from pipeline.settings.root import Settings

Detach = Annotated[
    bool, typer.Option("--detach", help="Do not wait for the end. `headwater status` shows the progress.")
]
QUIET = 20.0
"""Seconds without progress of a snapshot until that is reported."""


def snapshot(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE", help="The tables. A source must capture them.")],
    units: Annotated[
        float | None, typer.Option(min=0.1, help="Read units per second, instead of the share in the settings.")
    ] = None,
    segments: Annotated[int | None, typer.Option(min=1, max=1_000, help="Segments to scan in parallel.")] = None,
    export: Annotated[
        str | None, typer.Option(help="Export the table to s3://bucket/prefix, and read the export.")
    ] = None,
    forecast: Annotated[bool, typer.Option("--forecast", help="Print the expected time and cost, and stop.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the running snapshots of the tables.")] = False,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Read all items of tables into raw, as changes of the kind READ, while their streams are captured."""
    from pipeline.operate import snapshots as snapshotting
    from pipeline.settings.load import load
    from pipeline.settings.sources import S3_URL

    settings = load()
    if export is not None and not re.match(S3_URL, export):
        raise UsageError(f"--export {export}: expected s3://bucket/prefix", hint="headwater snapshot --help")
    wish = snapshotting.Wish(units, segments, export)
    if cancel:
        ended = snapshotting.cancel(settings, tables)
        for one in ended:
            say(f"{one.table}: the snapshot {one.id} is being cancelled")
        if not ended:
            say("no snapshot of these tables is running")
        if as_json:
            print_json([snapshotting.SnapshotProgress(one, 0, 0.0).json() for one in ended])
    elif forecast:
        found = [snapshotting.outlook(table, wish) for table in snapshotting.look_at(settings, tables)]
        if as_json:
            print_json([asdict(one) for one in found])
        for table in found if not as_json else ():
            print_text(f"{table}")
    else:
        take_snapshots(settings, dict.fromkeys(tables, 0.0), wish, detach=detach, as_json=as_json)


def take_snapshots(
    settings: Settings,
    newest_gaps: Mapping[str, float],
    wish: snapshotting.Wish,
    *,
    detach: bool,
    as_json: bool,
) -> None:
    """Request snapshots of tables, except of those under way, and show the progress. Ctrl-C leaves them to the workers."""
    from pipeline.operate import snapshots as snapshotting

    found = snapshotting.look_at(settings, newest_gaps)
    there = snapshotting.under_way(settings, newest_gaps)
    for one in there:
        say(f"{one.table}: the snapshot {one.id} is already {one.state}; --cancel cancels it")
    found = [table for table in found if table.facts.table not in {one.table for one in there}]
    for table in found:
        say(f"{snapshotting.outlook(table, wish)}")
    new = [snapshotting.new(table, wish) for table in found]
    snapshotting.ask_for(settings, new)
    wanted = there + new
    outcome = [snapshotting.SnapshotProgress(one, 0, 0.0) for one in wanted]
    if not detach:
        say("the workers take the snapshots; Ctrl-C does not stop them, headwater snapshot --cancel does")
        with suppress(KeyboardInterrupt), snapshotting.watching(settings, wanted) as look:
            outcome = _watch(look)
    if as_json:
        print_json([one.json() for one in outcome])
    failed = [one.snapshot for one in outcome if one.snapshot.state in {"cancelled", "failed"}]
    for one in failed:
        say(f"{one.table}: the snapshot {one.id} was {one.state}" if not one.reason else f"{one.table}: {one.reason}")
    if failed:
        raise typer.Exit(1)


def _watch(look: Callable[[], list[snapshotting.SnapshotProgress]]) -> list[snapshotting.SnapshotProgress]:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} rows, {task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=err) as bars:
        tasks = {one.snapshot.stream: bars.add_task("", total=None, rate=0.0) for one in look()}
        before, moved, said = look(), time.monotonic(), False
        while True:
            now = look()
            if now != before:
                before, moved, said = now, time.monotonic(), False
            elif not said and time.monotonic() > moved + QUIET:
                said = True
                bars.console.print(
                    f"no progress for {QUIET:.0f} s: check with headwater status that a worker runs the agent ingest and reads "
                    "the shards; the worker's log says what it waits for",
                    highlight=False,
                )
            for one in now:
                snapshot, since = one.snapshot, time.time() - (one.snapshot.began or time.time())
                done = snapshot.has_ended
                total = one.rows if done else max(snapshot.expected, one.rows) or None
                rate = one.rows / since if since > 0 else 0.0
                what = f"{snapshot.table} ({snapshot.state})"
                bars.update(tasks[snapshot.stream], description=what, total=total, completed=one.rows, rate=rate)
            if all(one.snapshot.has_ended for one in now):
                return now
            time.sleep(0.2)
