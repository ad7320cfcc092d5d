"""`headwater check`, `headwater status`, `headwater topics`: what there is, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.console import Json, print_json, print_table, print_text

if TYPE_CHECKING:
    from pipeline.operate.check import Finding
    from pipeline.operate.status import Status
    from pipeline.topics.admin import TopicState


def check(as_json: Json = False) -> None:
    """Check everything that a worker needs, and say what to type next. Changes nothing."""
    from pipeline.operate import check as checks
    from pipeline.settings.load import load

    findings = []
    for finding in checks.check(load()):
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    if as_json:
        print_json([finding.json() for finding in findings])
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _print_finding(finding: Finding) -> None:
    mark, style = ("FAIL", "red") if not finding.ok else ("warn", "yellow") if finding.is_warning else ("ok  ", "green")
    print_text(mark, style, end=" ")
    print_text(finding.what, "bold", end=": ")
    print_text(finding.detail)
    if finding.hint:
        print_text(f"     try: {finding.hint}")


def status(as_json: Json = False) -> None:
    """Show shards and positions, lag, dead letters, gaps, replays, and what is stuck."""
    from pipeline.operate import status as statuses
    from pipeline.settings.load import load

    found = statuses.status(load())
    if as_json:
        print_json(found.json())
    else:
        _print_status(found)


def _print_status(found: Status) -> None:
    print_text(f"group {found.group}: {found.workers} workers, {found.dead_letters} dead letters, {found.gaps} gaps")
    if found.gaps:
        print_text("incomplete", "red", end="")
        print_text(": changes are known to be lost. headwater gaps lists them")
    for worker in found.flows:
        version = f"version {worker.version}" if worker.version else "from its settings file"
        behind = f" (version {worker.applied} is applied)" if worker.version < worker.applied else ""
        print_text(f"flows of {worker.worker}: {version}{behind}")
        for reason in worker.stopped.values():
            print_text("paused", "red", end="")
            print_text(f": {reason}")
        if worker.refused:
            print_text(f"refused: {worker.refused}", "red")
    for sink in found.sinks:
        print_text(sink.sink, "red", end="")
        print_text(f" is stuck at {sink.topic}[{sink.partition}]: {sink.reason}")
    shards = [
        (shard.table, shard.shard, shard.after or "nothing yet", "yes" if shard.finished else "")
        for shard in found.shards
    ]
    print_table(("table", "shard", "read up to", "finished"), shards)
    if found.snapshots:
        snapshots = [
            (snapshot.table, snapshot.id, snapshot.state, f"{snapshot.rows:,}") for snapshot in found.snapshots
        ]
        print_table(("table", "snapshot", "state", "rows"), snapshots)
    if found.replays:
        replays = [
            (replay.id, replay.state, replay.into, f"{replay.read:,}", f"{replay.records:,}")
            for replay in found.replays
        ]
        print_table(("replay", "state", "into", "read", "at most"), replays)
    lag = [(one.agent, one.topic, f"{one.records}" if one.exact else f"about {one.records}") for one in found.lag]
    print_table(("agent", "topic", "behind"), lag)


def topics(
    as_json: Json = False,
    create: Annotated[bool, typer.Option("--create", help="Create the missing ones.")] = False,
) -> None:
    """List the topics: what each is for, and whether it exists."""
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
        _print_topics(found)
    if any(topic.problem for topic in found):
        raise typer.Exit(1)


def _print_topics(found: Sequence[TopicState]) -> None:
    rows = [(one.wanted.name, one.wanted.purpose, one.problem or str(one.partitions or "missing")) for one in found]
    print_table(("topic", "what for", "partitions"), rows)
