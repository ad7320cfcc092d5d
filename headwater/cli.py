"""The command `headwater`: data to stdout, progress to stderr; exit 0 fine, 1 problems found, 2 usage."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol

import msgspec
import typer
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from headwater.commands import dlq, explain, flows, lake, positions, replay, replica
from headwater.console import Json, err, one_of, out, print_json, say
from headwater.worker import COMMAND
from pipeline import missing
from pipeline.errors import HeadwaterError, UsageError
from pipeline.operate import check as checks
from pipeline.operate import snapshots as snapshotting
from pipeline.operate import status as statuses
from pipeline.operate.gaps import gaps as known_gaps
from pipeline.operate.gaps import tables_of
from pipeline.own_packages import hidden
from pipeline.runtime.app import create_app
from pipeline.settings.load import load
from pipeline.settings.root import Settings
from pipeline.settings.sources import S3_URL
from pipeline.topics.admin import admin, ensure, look, look_again
from pipeline.topics.names import Topics

app = typer.Typer(
    name="headwater",
    help="Every change of a DynamoDB table in Kafka: once, in order, enriched, routed, replayable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
local = typer.Typer(help="A Kafka broker and AWS stand-ins on this machine.", no_args_is_help=True)
app.add_typer(local, name="local", rich_help_panel="Lab")
bench = typer.Typer(help="Measure Headwater against peers, on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench", rich_help_panel="Lab")
soak = typer.Typer(help="Run for a while with everything that can happen, and prove the outcome.", no_args_is_help=True)
app.add_typer(soak, name="soak", rich_help_panel="Lab")
app.add_typer(flows.app, name="flows", rich_help_panel="Look")
app.command(rich_help_panel="Look")(explain.explain)
app.add_typer(dlq.app, name="dlq", rich_help_panel="Repair")
app.add_typer(replica.app, name="replica", rich_help_panel="Look")
app.add_typer(lake.app, name="lake", rich_help_panel="Repair")
app.add_typer(replay.app, name="replay", rich_help_panel="Repair")
gaps_app = typer.Typer(help="What is known to be lost, and how to have it again.", invoke_without_command=True)
app.add_typer(gaps_app, name="gaps", rich_help_panel="Look")
app.add_typer(positions.app, name="positions", rich_help_panel="Repair")

Detach = Annotated[bool, typer.Option("--detach", help="Do not wait for the end; headwater status shows how it goes.")]
Directory = Annotated[Path, typer.Option("--dir", help="Where the stack keeps its data.")]
LOCAL = Path(".headwater/local")
DEMO = Path(".headwater/demo")
QUIET = 20.0
"""Seconds without progress of a snapshot after which that is worth a word."""


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
        line = missing.explained(error)
        if line is None or "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        err.print(f"headwater: {line}", markup=False, highlight=False, soft_wrap=True)
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


@app.command(rich_help_panel="Run")
def run(
    agents: Annotated[list[str] | None, typer.Argument(help="The agents to run; without, all that have work.")] = None,
    web: Annotated[bool, typer.Option("--web/--without-web", help="Serve /livez, /readyz and /metrics.")] = True,
    loglevel: Annotated[str, typer.Option("--loglevel", "-l", help="info, warn, error or debug.")] = "info",
) -> None:
    """Start a worker."""
    if agents:
        os.environ["HEADWATER_AGENTS"] = json.dumps(agents)
    if not web:
        os.environ["HEADWATER_WEB__ENABLED"] = "false"
    settings = load()
    for one in hidden():
        say(f"warning: {one}; rename it if a function of yours imports it")
    create_app(settings).worker.prepare()  # what is missing is said here, in one line
    command = [sys.executable, *COMMAND, "-A", "pipeline.worker", "worker", "-l", loglevel]
    command += [] if settings.web.enabled else ["--without-web"]
    os.execv(sys.executable, command)  # noqa: S606 - the worker takes this process's place: signals reach it


@app.command(rich_help_panel="Look")
def check(as_json: Json = False) -> None:
    """Look at everything a worker needs, change nothing, say what to type next."""
    findings = []
    for finding in checks.check(load()):
        findings.append(finding)
        if not as_json:
            mark = "[red]FAIL[/]" if not finding.ok else "[yellow]warn[/]" if finding.is_warning else "[green]ok  [/]"
            out.print(f"{mark} [bold]{finding.what}[/]: ", end="", highlight=False)
            out.print(finding.detail, markup=False, highlight=False, soft_wrap=True)
            if finding.hint:
                out.print(f"     try: {finding.hint}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json([finding.json() for finding in findings])
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command(rich_help_panel="Look")
def status(as_json: Json = False) -> None:
    """Show shards and positions, lag, dead letters, gaps, replays, and what does not go on."""
    found = statuses.status(load())
    if as_json:
        print_json(found.json())
        return
    out.print(f"group {found.group}: {found.workers} workers, {found.dead_letters} dead letters, {found.gaps} gaps")
    if found.gaps:
        out.print("[red]incomplete[/]: changes are known to be lost; headwater gaps says which")
    for worker in found.flows:
        version = f"version {worker.version}" if worker.version else "those of its settings"
        behind = f", {worker.applied} is applied" if worker.version < worker.applied else ""
        out.print(f"flows of {worker.worker}: {version}{behind}", highlight=False)
        for reason in [*worker.stopped.values(), *([f"refused {worker.refused}"] if worker.refused else [])]:
            out.print(f"[red]stands[/]: {reason}" if worker.stopped else f"[red]{reason}[/]", highlight=False)
    shards = Table("table", "shard", "read up to", "finished")
    for shard in found.shards:
        shards.add_row(shard.table, shard.shard, shard.after or "nothing yet", "yes" if shard.finished else "")
    snapshots = Table("table", "snapshot", "state", "rows")
    for one in found.snapshots:
        snapshots.add_row(one.table, one.id, one.state, f"{one.rows:,}")
    replays = Table("replay", "state", "into", "read", "of at most")
    for replayed in found.replays:
        replays.add_row(replayed.id, replayed.state, replayed.into, f"{replayed.read:,}", f"{replayed.records:,}")
    for sink in found.sinks:
        out.print(f"[red]{sink.sink}[/] {sink.topic}\\[{sink.partition}] does not go on: ", end="", highlight=False)
        out.print(sink.reason, markup=False, highlight=False, soft_wrap=True)
    lag = Table("agent", "topic", "behind")
    for agent in found.lag:
        lag.add_row(agent.agent, agent.topic, f"{agent.records}" if agent.exact else f"about {agent.records}")
    out.print(shards, *([snapshots] if found.snapshots else []), *([replays] if found.replays else []), lag)


@gaps_app.callback()
def gaps(context: typer.Context, as_json: Json = False) -> None:
    """List what is known to be lost: which changes, and why. Exit 1 when there is something that is not repaired."""
    if context.invoked_subcommand is not None:
        return
    found = known_gaps(load())
    if as_json:
        print_json([{**msgspec.to_builtins(gap), "repaired": repaired} for gap, repaired in found])
    elif found:
        table = Table("noticed", "of", "where", "after", "before", "at most", "cause", "repaired")
        for gap, repaired in found:
            noticed = f"{datetime.fromtimestamp(gap.at, UTC):%Y-%m-%d %H:%M:%S}Z"
            if gap.topic:
                place = gap.topic, f"partition {gap.partition}", f"{gap.first - 1}", f"{gap.last + 1}", f"{gap.count:,}"
            else:
                place = gap.table, gap.shard or "all", gap.after or "", gap.before or "", ""
            table.add_row(noticed, *place, gap.cause, "yes" if repaired else "no")
        out.print(table)
    if not all(repaired for _, repaired in found):
        raise typer.Exit(1)


@gaps_app.command(name="repair")
def gaps_repair(
    tables: Annotated[list[str] | None, typer.Argument(help="The tables; without, all with gaps.")] = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Read all items of the tables with gaps anew, as rows of a snapshot. Deletions within a gap stay unknown."""
    settings = load()
    newest = dict[str, float]()
    for gap, repaired in known_gaps(settings):
        found = [] if repaired else tables_of(gap, settings)
        newest |= {table: max(gap.at, newest.get(table, 0.0)) for table in found}
        if gap.topic and not repaired and not found:
            say(
                f"{gap.topic}[{gap.partition}]: no snapshot brings back what a sink topic has lost; "
                "headwater replay sends it again from raw, or from the lake"
            )
    chosen = sorted(newest.keys() & set(tables) if tables else newest)
    wanted = [table for table in chosen if snapshotting.source_of(settings, table) is not None]
    for table in [one for one in chosen if one not in wanted]:
        say(f"{table}: no source of kind dynamodb-stream captures it, so its items cannot be read anew")
    if not wanted:
        say("there is nothing to repair")
        return
    say(
        "what was deleted within a gap cannot be read any more: consumers keep such items until they change or are compared"
    )
    gaps = {table: newest[table] for table in wanted}
    _take_snapshots(settings, gaps, snapshotting.Wish(), detach=detach, as_json=as_json)


@app.command(rich_help_panel="Run")
def snapshot(
    tables: Annotated[list[str], typer.Argument(help="Captured tables.")],
    units: Annotated[float | None, typer.Option(min=0.1, help="Read units a second, instead of the share set.")] = None,
    segments: Annotated[int | None, typer.Option(min=1, max=1_000, help="Segments scanned side by side.")] = None,
    export: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix: export the table to there, and read that.")
    ] = None,
    forecast: Annotated[bool, typer.Option("--forecast", help="Say what it would take, and stop.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the snapshots of the tables that run.")] = False,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Read all items of tables into raw, as changes of the kind READ, beside the capture of their streams."""
    settings = load()
    if export is not None and not re.match(S3_URL, export):
        raise UsageError(f"--export {export}: expected s3://bucket/prefix", hint="headwater snapshot --help")
    wish = snapshotting.Wish(units, segments, export)
    if cancel:
        ended = snapshotting.cancel(settings, tables)
        for one in ended:
            say(f"{one.table}: the snapshot {one.id} will end")
        if not ended:
            say("there is none that runs")
    elif forecast:
        found = [snapshotting.outlook(table, wish) for table in snapshotting.look_at(settings, tables)]
        if as_json:
            print_json([asdict(one) for one in found])
        for table in found if not as_json else ():
            out.print(f"{table}", highlight=False, soft_wrap=True)
    else:
        _take_snapshots(settings, dict.fromkeys(tables, 0.0), wish, detach=detach, as_json=as_json)


def _take_snapshots(
    settings: Settings,
    newest_gaps: Mapping[str, float],
    wish: snapshotting.Wish,
    *,
    detach: bool,
    as_json: bool,
) -> None:
    """Ask for snapshots of tables, those under way excepted, and show how they go on; Ctrl-C leaves them to the workers."""
    found = snapshotting.look_at(settings, newest_gaps)
    there = snapshotting.under_way(settings, newest_gaps)
    for one in there:
        say(f"{one.table}: the snapshot {one.id} is {one.state} already; --cancel ends it")
    found = [table for table in found if table.facts.table not in {one.table for one in there}]
    for table in found:
        say(f"{snapshotting.outlook(table, wish)}")
    new = [snapshotting.new(table, wish) for table in found]
    snapshotting.ask_for(settings, new)
    wanted = there + new
    outcome = [snapshotting.SnapshotProgress(one, 0, 0.0) for one in wanted]
    if not detach:
        say("the workers take it from here; Ctrl-C does not stop them, headwater snapshot --cancel does")
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
                    f"nothing has come for {QUIET:.0f} s: does a worker with the agent ingest run, and are the shards being "
                    "read? headwater status; the worker's log says what it waits for",
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


@app.command(rich_help_panel="Look")
def topics(
    as_json: Json = False,
    create: Annotated[bool, typer.Option("--create", help="Make those that are missing.")] = False,
) -> None:
    """List the topics: what each is for, and whether it is there."""
    settings = load()
    client = admin(settings.kafka.conf)
    if create:
        ensure(client, Topics(settings).all(), settings.kafka.replication_factor)
    found = look_again(client, Topics(settings).all()) if create else look(client, Topics(settings).all())
    if as_json:
        rows = [(t.wanted.name, t.wanted.purpose, t.wanted.partitions, t.partitions, t.problem) for t in found]
        print_json(
            [dict(zip(("name", "purpose", "wanted", "partitions", "problem"), row, strict=True)) for row in rows]
        )
    else:
        table = Table("topic", "what for", "partitions")
        for topic in found:
            table.add_row(topic.wanted.name, topic.wanted.purpose, topic.problem or str(topic.partitions or "missing"))
        out.print(table)
    if any(topic.problem for topic in found):
        raise typer.Exit(1)


@local.command()
def up(
    directory: Directory = LOCAL,
    broker: Annotated[str, typer.Option(help="auto, kafka or noida.")] = "auto",
    aws: Annotated[str, typer.Option(help="ministack or dynamodb-local.")] = "ministack",
    as_json: Json = False,
) -> None:
    """Start a broker and AWS stand-ins; they run until `headwater local down`."""
    from headwater.lab.stack import local_up

    endpoints = local_up(
        directory,
        one_of("--broker", broker, "auto", "kafka", "noida"),
        one_of("--aws", aws, "ministack", "dynamodb-local"),
        progress=say,
    )
    if as_json:
        print_json(endpoints.environment())
        return
    say(f"{endpoints.broker}: {endpoints.reason}")
    for name, value in endpoints.environment().items():
        out.print(f"export {name}={value}", highlight=False, soft_wrap=True)


@local.command()
def down(directory: Directory = LOCAL, as_json: Json = False) -> None:
    """Stop the local stack; its data stay."""
    from headwater.lab.stack import local_down

    stopped = local_down(directory)
    if as_json:
        print_json([process._asdict() for process in stopped])
    else:
        say(f"stopped: {', '.join(process.name for process in stopped) or 'nothing was running'}")


@local.command(name="status")
def local_status_command(directory: Directory = LOCAL, as_json: Json = False) -> None:
    """Show what runs; exit 1 if nothing does."""
    from headwater.lab.stack import local_status

    found = local_status(directory)
    if as_json:
        print_json([process._asdict() for process in found])
    else:
        for process in found:
            out.print(
                f"{process.name}  {process.address}  pid {process.pid}  {'running' if process.alive else 'ended'}"
            )
    if not any(process.alive for process in found):
        if not found:
            say(f"no local stack in {directory}; try: headwater local up")
        raise typer.Exit(1)


@app.command(rich_help_panel="Lab")
def demo(
    changes: Annotated[int, typer.Option(min=40, help="How many changes to write.")] = 5_000,
    seed: Annotated[int, typer.Option(help="Same seed, same changes.")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Worker processes.")] = 2,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running and say how to look around.")] = False,
    broker: Annotated[str, typer.Option(help="auto, kafka or noida.")] = "auto",
    aws: Annotated[str, typer.Option(help="ministack or dynamodb-local.")] = "ministack",
    fault: Annotated[
        str, typer.Option(help="Hurt a worker half-way: none, kill (SIGKILL) or freeze (SIGSTOP).")
    ] = "none",
    directory: Directory = DEMO,
    as_json: Json = False,
) -> None:
    """Carry changes from DynamoDB to Parquet on this machine, and prove that none was lost, doubled or reordered."""
    from headwater.lab import demo as demos
    from headwater.lab.screen import Screen, show
    from headwater.lab.stack import local_status

    if any(process.alive for process in local_status(directory)):
        raise HeadwaterError(f"a demo is still running in {directory}", hint=f"headwater local down --dir {directory}")
    shutil.rmtree(directory, ignore_errors=True)
    options = demos.DemoOptions(
        directory=directory.absolute(),
        changes=changes,
        seed=seed,
        workers=workers,
        broker=one_of("--broker", broker, "auto", "kafka", "noida"),
        aws=one_of("--aws", aws, "ministack", "dynamodb-local"),
        fault=one_of("--fault", fault, "none", "kill", "freeze"),
        keep=keep,
    )
    progress = demos.DemoProgress()
    with Screen(err, progress) as screen:
        report, ran = demos.run(options, progress, screen.say)
    show(err, report)
    if keep:
        say(ran.how_to_look_around())
    if as_json:
        print_json(report.json())
    if not report.ok:
        raise typer.Exit(1)


@app.command(rich_help_panel="Lab")
def chaos(
    faults: Annotated[int, typer.Option(min=1, help="How many faults.")] = 12,
    seed: Annotated[int, typer.Option(help="Same seed, same schedule.")] = 1,
    rate: Annotated[int, typer.Option(min=1, help="Changes a second.")] = 5_000,
    only: Annotated[list[str] | None, typer.Option(help="Only this fault; more than one may be named.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the outcome into this file, as a section.")] = None,
    directory: Directory = Path(".headwater/chaos"),
    as_json: Json = False,
) -> None:
    """Hurt workers, broker and topics under load, and prove that nothing was lost, doubled, reordered or stuck."""
    from headwater.lab import chaos as chaoses
    from headwater.lab.chaos_report import ChaosOptions

    shutil.rmtree(directory, ignore_errors=True)
    options = ChaosOptions(directory.absolute(), faults, seed, rate, only=tuple(only or ()), page=page)
    say(f"seed {seed}")
    report = chaoses.run(options, say=say)
    for name, why in report.left_out.items():
        say(f"left out: {name}: {why}")
    verdict = "[bold green]PROVED[/]" if report.ok else "[bold red]FAILED[/]"
    err.print(
        f"{verdict} {sum(report.faults.values())} faults, {report.input:,} changes; lost {report.lost}, "
        f"duplicated {report.duplicated}, out of order {report.out_of_order}, stuck {report.stuck}; "
        f"{report.in_gaps:,} in gaps, {report.dead_letters} dead letters, {report.aborted} slices aborted",
        highlight=False,
    )
    if as_json:
        print_json(report.json())
    if not report.ok:
        raise typer.Exit(1)


@app.command(rich_help_panel="Lab")
def simulate(
    table: Annotated[list[str] | None, typer.Option(help="A table; more than one may be named.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same history.")] = 1,
    rate: Annotated[int, typer.Option(min=1, help="Changes a second.")] = 1_000,
    changes: Annotated[int | None, typer.Option(min=1, help="Changes after which nothing more happens.")] = None,
    rough: Annotated[bool, typer.Option("--rough", help="With throttles, errors, trimming and all else.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Change nothing until the first GetRecords or SubscribeToShard.")
    ] = False,
    kinesis: Annotated[
        bool, typer.Option("--kinesis", help="Deliver into Kinesis streams of the tables' names.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Simulate DynamoDB tables, or Kinesis streams, for boto3, until Ctrl-C; print the AWS_ENDPOINT_URL to use."""
    from headwater.lab.simulator import faults, server, world

    tables = tuple(table or world.WorldPlan().tables)
    plan = world.WorldPlan(seed, tables, reshape_every=60 * rate, kinesis=kinesis)
    if rough:
        plan = world.WorldPlan.rough(tables, seed, rate, kinesis=kinesis)
    rates = faults.Rates.rough() if rough else faults.Rates()
    lasts = 10.0 if rough else 300.0
    options = server.SimulatorOptions(
        plan, rates, rate, changes, subscription_seconds=lasts, wait_for_reader=wait, port=port
    )
    with suppress(KeyboardInterrupt):
        asyncio.run(server.Simulator(options).run(lambda address: out.print(f"AWS_ENDPOINT_URL={address}")))


@soak.command(name="sources")
def soak_sources(
    seconds: Annotated[float, typer.Option(min=10, help="How long changes are made.")] = 60,
    seed: Annotated[int, typer.Option(help="Same seed, same history of the streams.")] = 1,
    rate: Annotated[int, typer.Option(min=1, help="Changes a second.")] = 1_500,
    kinesis: Annotated[
        bool, typer.Option("--kinesis", help="Kinesis streams, polled and pushed, that grow to 64 shards.")
    ] = False,
    page: Annotated[Path | None, typer.Option(help="Write the outcome into this file, as a section.")] = None,
    directory: Directory = Path(".headwater/soak"),
    as_json: Json = False,
) -> None:
    """Read simulated streams with three workers that are killed in turn, and hold raw against the truth."""
    from headwater.lab import soak as soaks
    from headwater.lab import soak_report

    shutil.rmtree(directory, ignore_errors=True)
    options = soak_report.SoakOptions(
        directory.absolute(), seconds=seconds, seed=seed, rate=rate, kinesis=kinesis, page=page
    )
    report = soaks.run(options, say=say)
    verdict = "[bold green]PROVED[/]" if report.ok else "[bold red]FAILED[/]"
    err.print(
        f"{verdict} {report.changes:,} changes, {report.reshards} reshardings, {report.kills} kills; lost {report.lost}, "
        f"duplicated {report.duplicated}, out of order {report.out_of_order}; {report.trimmed_ranges} ranges trimmed "
        f"unread, {report.gaps_recorded} gaps written",
        highlight=False,
    )
    if as_json:
        print_json(report.json())
    if not report.ok:
        raise typer.Exit(1)


class _Results(Protocol):
    def as_json(self) -> Any: ...

    @property
    def failures(self) -> list[str]: ...


def _end(results: _Results, as_json: bool) -> None:
    """Print what was measured, and fail when an output was wrong."""
    if as_json:
        print_json(results.as_json())
    if results.failures:
        raise HeadwaterError("; ".join(results.failures), hint="run it again; keep the directory it names")


@bench.command(name="dedup")
def bench_dedup(
    messages: Annotated[int, typer.Option(min=1_000, help="Records a run.")] = 600_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all systems by turns; medians are shown.")] = 3,
    peers: Annotated[bool, typer.Option("--peers", help="Quix Streams and Kafka Streams too.")] = False,
    growth: Annotated[bool, typer.Option("--growth", help="Throughput with ten million IDs in the table too.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture into this directory.")] = None,
    as_json: Json = False,
) -> None:
    """Deduplication, exactly once: against a loop by hand, the textbook Faust agent, and peers."""
    from headwater.lab.bench import (
        dedup,
        report,  # its picture is drawn by matplotlib, of the extra `bench`
    )

    options = dedup.DedupOptions(messages=messages, rounds=rounds, peers=peers, growth=growth)
    results = dedup.measure(options, say)
    report.show(results, err)
    if plot is not None:
        say(f"wrote {report.plot(results, plot)}")
    _end(results, as_json)


@bench.command(name="flows")
def bench_flows(
    messages: Annotated[int, typer.Option(min=5_000, help="Changes a run.")] = 300_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all systems by turns; medians are shown.")] = 3,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Quix Streams, Faust and Kafka Streams too.")
    ] = True,
    task: Annotated[list[str] | None, typer.Option(help="A flow; more than one may be named; without, all.")] = None,
    as_json: Json = False,
) -> None:
    """Flows, exactly once, from raw to a sink topic: pass-through, filters, a join, SQL, envelopes; and peers at the same."""
    from headwater.lab.bench import flow_report
    from headwater.lab.bench import flows as flow_bench

    tasks = tuple(one_of("--task", one, *flow_bench.TASKS) for one in task or flow_bench.TASKS)
    results = flow_bench.measure(
        flow_bench.FlowOptions(messages=messages, rounds=rounds, peers=peers, tasks=tasks), say
    )
    flow_report.show(results, err)
    _end(results, as_json)


@bench.command(name="lake")
def bench_lake(
    messages: Annotated[int, typer.Option(min=300_000, help="Changes a run.")] = 600_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all by turns; medians are shown.")] = 3,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Quix Streams' file sink too.")] = True,
    as_json: Json = False,
) -> None:
    """Measure Parquet files of a sink topic, in both layouts, to a directory and to S3; pyarrow alone; and a peer."""
    from headwater.lab.bench import lake as lake_bench

    results = lake_bench.measure(lake_bench.LakeOptions(messages=messages, rounds=rounds, peers=peers), say)
    lake_bench.show(results, err)
    _end(results, as_json)


@bench.command(name="replay")
def bench_replay(
    messages: Annotated[int, typer.Option(min=5_000, help="Changes a run.")] = 300_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of both by turns; medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure flows, exactly once: live by a worker, and again by a replay."""
    from headwater.lab.bench import replay as replay_bench

    results = replay_bench.measure(replay_bench.ReplayOptions(messages=messages, rounds=rounds), say)
    replay_bench.show(results, err)
    _end(results, as_json)


@bench.command(name="ingest")
def bench_ingest(
    messages: Annotated[int, typer.Option(min=5_000, help="Changes a run.")] = 600_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all systems by turns; medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Ingest, exactly once: a worker that reads 1, 8 and 64 canned shards against a plain boto3 loop; and 64 idle shards."""
    from headwater.lab.bench import ingest, ingest_report

    results = ingest.measure(ingest.IngestOptions(messages=messages, rounds=rounds), say)
    ingest_report.show(results, err)
    _end(results, as_json)


@bench.command(name="mirror")
def bench_mirror(
    messages: Annotated[int, typer.Option(min=5_000, help="Records a run.")] = 400_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of both by turns; medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Mirrors, exactly once: a worker that copies a sink topic to another cluster against a plain loop."""
    from headwater.lab.bench import mirror

    results = mirror.measure(mirror.MirrorOptions(messages=messages, rounds=rounds), say)
    mirror.show(results, err)
    if as_json:
        print_json(results.as_json())
    if results.failures:
        raise HeadwaterError("; ".join(results.failures), hint="run it again")


if __name__ == "__main__":
    main()
