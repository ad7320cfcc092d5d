"""`headwater demo`, `chaos`, `simulate`, `soak`: try the product on this machine."""

from __future__ import annotations

import asyncio
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from headwater.console import Aws, Broker, Directory, Json, err, print_json, print_text, say
from pipeline.errors import HeadwaterError

soak = typer.Typer(help="Run for a while under all kinds of faults, and prove the result.", no_args_is_help=True)
DEMO = Path(".headwater/demo")


def demo(
    changes: Annotated[int, typer.Option(min=40, help="Number of changes.")] = 5_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same changes.")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Number of worker processes.")] = 2,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep everything running, and print how to look around.")
    ] = False,
    broker: Annotated[
        Broker, typer.Option(help="The broker. auto: Apache Kafka if it can run here, else noida.")
    ] = "auto",
    aws: Annotated[Aws, typer.Option(help="The stand-in for AWS.")] = "ministack",
    fault: Annotated[
        Literal["none", "kill", "freeze"],
        typer.Option(help="Disturb a worker half-way: kill (SIGKILL) or freeze (SIGSTOP)."),
    ] = "none",
    directory: Directory = DEMO,
    as_json: Json = False,
) -> None:
    """Carry changes from DynamoDB to Parquet on this machine, and prove that none is lost, duplicated or reordered."""
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
        broker=broker,
        aws=aws,
        fault=fault,
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


def chaos(
    faults: Annotated[int, typer.Option(min=1, help="Number of faults.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same schedule.")] = 1,
    rate: Annotated[int, typer.Option(min=1, help="Changes per second.")] = 5_000,
    only: Annotated[list[str] | None, typer.Option(help="Only this fault. May be repeated.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the result into a section of this file.")] = None,
    directory: Directory = Path(".headwater/chaos"),
    as_json: Json = False,
) -> None:
    """Disturb workers, broker and topics under load, and prove that nothing is lost, duplicated, reordered or stuck."""
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


def simulate(
    table: Annotated[list[str] | None, typer.Option(help="A table. May be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same history.")] = 1,
    rate: Annotated[int, typer.Option(min=1, help="Changes per second.")] = 1_000,
    changes: Annotated[int | None, typer.Option(min=1, help="Stop changing after this many changes.")] = None,
    rough: Annotated[
        bool, typer.Option("--rough", help="With throttles, errors, trimmed records and all other faults.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Make no changes before the first GetRecords or SubscribeToShard.")
    ] = False,
    kinesis: Annotated[
        bool, typer.Option("--kinesis", help="Deliver into Kinesis streams, named as the tables.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1. 0: any free port.")] = 0,
    as_json: Json = False,
) -> None:
    """Simulate DynamoDB tables or Kinesis streams until Ctrl-C. Prints the AWS_ENDPOINT_URL for boto3."""
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

    def tell(address: str) -> None:
        print_json({"AWS_ENDPOINT_URL": address}) if as_json else print_text(f"AWS_ENDPOINT_URL={address}")
        sys.stdout.flush()

    with suppress(KeyboardInterrupt):
        asyncio.run(server.Simulator(options).run(tell))


@soak.command(name="sources")
def soak_sources(
    seconds: Annotated[float, typer.Option(min=10, help="How long changes are made, in seconds.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed gives the same history.")] = 1,
    rate: Annotated[int, typer.Option(min=1, help="Changes per second.")] = 1_500,
    kinesis: Annotated[
        bool, typer.Option("--kinesis", help="Kinesis streams, polled and pushed, that grow to 64 shards.")
    ] = False,
    page: Annotated[Path | None, typer.Option(help="Write the result into a section of this file.")] = None,
    directory: Directory = Path(".headwater/soak"),
    as_json: Json = False,
) -> None:
    """Read simulated streams with three workers that are killed in turn, and compare raw with the truth."""
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
        f"unread, {report.gaps_recorded} gaps recorded",
        highlight=False,
    )
    if as_json:
        print_json(report.json())
    if not report.ok:
        raise typer.Exit(1)
