"""`headwater check`, `headwater status`, `headwater topics`: look, and change nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from headwater.console import Json, out, print_json


def check(as_json: Json = False) -> None:
    """Look at everything a worker needs, change nothing, say what to type next."""
    from pipeline.operate import check as checks
    from pipeline.settings.load import load

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


def status(as_json: Json = False) -> None:
    """Show shards and positions, lag, dead letters, gaps, replays, and what does not go on."""
    from rich.table import Table

    from pipeline.operate import status as statuses
    from pipeline.settings.load import load

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


def topics(
    as_json: Json = False,
    create: Annotated[bool, typer.Option("--create", help="Make those that are missing.")] = False,
) -> None:
    """List the topics: what each is for, and whether it is there."""
    from rich.table import Table

    from pipeline.settings.load import load
    from pipeline.topics.admin import admin, ensure, look, look_again
    from pipeline.topics.names import Topics

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
