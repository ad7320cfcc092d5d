"""`headwater bench`: measure Headwater against peers, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from headwater.console import Json, err, one_of, print_json, say
from pipeline.errors import HeadwaterError

app = typer.Typer(help="Measure Headwater against peers, on this machine.", no_args_is_help=True)


class _Results(Protocol):
    def as_json(self) -> Any: ...

    @property
    def failures(self) -> list[str]: ...


def _end(results: _Results, as_json: bool) -> None:
    """Print what was measured, and fail when an output was wrong."""
    if as_json:
        print_json(results.as_json())
    if results.failures:
        raise HeadwaterError("; ".join(results.failures), hint="run it again, and keep the directory that it names")


@app.command()
def dedup(
    messages: Annotated[int, typer.Option(min=1_000, help="Records per run.")] = 600_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, all systems in turn. Medians are shown.")] = 3,
    peers: Annotated[bool, typer.Option("--peers", help="Also measure Quix Streams and Kafka Streams.")] = False,
    growth: Annotated[bool, typer.Option("--growth", help="Also measure with ten million IDs in the table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a picture into this directory.")] = None,
    as_json: Json = False,
) -> None:
    """Measure deduplication, exactly once, against a plain loop, a plain Faust agent, and peers."""
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


@app.command()
def flows(
    messages: Annotated[int, typer.Option(min=5_000, help="Changes per run.")] = 300_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, all systems in turn. Medians are shown.")] = 3,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Also measure Quix Streams, Faust and Kafka Streams.")
    ] = True,
    task: Annotated[list[str] | None, typer.Option(help="A flow. May be repeated. Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Measure flows, exactly once: pass-through, filters, a join, SQL, envelopes; and peers with the same tasks."""
    from headwater.lab.bench import flow_report
    from headwater.lab.bench import flows as flow_bench

    tasks = tuple(one_of("--task", one, *flow_bench.TASKS) for one in task or flow_bench.TASKS)
    results = flow_bench.measure(
        flow_bench.FlowOptions(messages=messages, rounds=rounds, peers=peers, tasks=tasks), say
    )
    flow_report.show(results, err)
    _end(results, as_json)


@app.command()
def lake(
    messages: Annotated[int, typer.Option(min=300_000, help="Changes per run.")] = 600_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, all systems in turn. Medians are shown.")] = 3,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Also measure Quix Streams' file sink.")] = True,
    as_json: Json = False,
) -> None:
    """Measure writing Parquet files, in both layouts, to a directory and to S3; also pyarrow alone, and a peer."""
    from headwater.lab.bench import lake as lake_bench

    results = lake_bench.measure(lake_bench.LakeOptions(messages=messages, rounds=rounds, peers=peers), say)
    lake_bench.show(results, err)
    _end(results, as_json)


@app.command()
def replay(
    messages: Annotated[int, typer.Option(min=5_000, help="Changes per run.")] = 300_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, both in turn. Medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure flows, exactly once: live in a worker, and in a replay."""
    from headwater.lab.bench import replay as replay_bench

    results = replay_bench.measure(replay_bench.ReplayOptions(messages=messages, rounds=rounds), say)
    replay_bench.show(results, err)
    _end(results, as_json)


@app.command()
def ingest(
    messages: Annotated[int, typer.Option(min=5_000, help="Changes per run.")] = 600_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, all systems in turn. Medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure ingest, exactly once: 1, 8 and 64 prepared shards against a plain boto3 loop; also 64 idle shards."""
    from headwater.lab.bench import ingest, ingest_report

    results = ingest.measure(ingest.IngestOptions(messages=messages, rounds=rounds), say)
    ingest_report.show(results, err)
    _end(results, as_json)


@app.command()
def mirror(
    messages: Annotated[int, typer.Option(min=5_000, help="Records per run.")] = 400_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, both in turn. Medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure a mirror, exactly once: a worker that copies a sink topic to another cluster, against a plain loop."""
    from headwater.lab.bench import mirror

    results = mirror.measure(mirror.MirrorOptions(messages=messages, rounds=rounds), say)
    mirror.show(results, err)
    if as_json:
        print_json(results.as_json())
    if results.failures:
        raise HeadwaterError("; ".join(results.failures), hint="run it again")
