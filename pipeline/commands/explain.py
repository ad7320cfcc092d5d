"""`headwater explain`: what the flows make of one event, as a tree."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from confluent_kafka import TopicPartition
from rich.markup import escape
from rich.tree import Tree

from models.change import MalformedChangeError
from pipeline import settings as settings_module
from pipeline.console import Json, content, out, print_json
from pipeline.errors import UsageError
from pipeline.explaining import FlowTrace
from pipeline.explaining import explain as explain_event
from pipeline.flows import onlooking
from pipeline.settings import Settings
from pipeline.status import reading


def explain(
    event: Annotated[Path | None, typer.Argument(help="A file with one event, as on raw.")] = None,
    topic: Annotated[str, typer.Option(help="Instead of a file: a topic, raw by its name.")] = "",
    partition: Annotated[int, typer.Option(min=0, help="The partition on it.")] = 0,
    offset: Annotated[int, typer.Option(min=-1, help="The offset there.")] = -1,
    reference: Annotated[
        list[Path] | None, typer.Option(help="TABLE.jsonl: items of a reference table, in typed JSON, one a line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what each flow makes of an event: which predicate decided, what each step did, where it would go."""
    settings = settings_module.load()
    if (event is None) == (offset < 0):
        raise UsageError("name a file, or --topic, --partition and --offset", hint="headwater explain --help")
    value = content(event) if event is not None else _fetch(settings, topic, partition, offset)
    tables = {file.stem: [json.loads(line) for line in content(file).splitlines()] for file in reference or ()}
    try:
        traces = explain_event(settings.flows, value, onlooking(settings.flows, settings.modules, tables), time.time())
    except MalformedChangeError as error:
        raise UsageError(f"{event or topic}: {error}", hint="docs/how-to/test-flows.md") from error
    if as_json:
        print_json([trace.json() for trace in traces])
        return
    for trace in traces:
        out.print(_tree(trace))


COLOURS = {"sent": "green", "left out": "yellow", "rejected": "red"}


def _tree(trace: FlowTrace) -> Tree:
    reason = f": {escape(trace.reason)}" if trace.reason else ""
    tree = Tree(f"flow [bold]{escape(trace.flow)}[/]  [{COLOURS[trace.outcome]}]{trace.outcome}[/]{reason}")
    for step in trace.steps:
        branch = tree.add(f"{escape(step.step)}: {escape(step.outcome)}")
        for line in step.details:
            branch.add(escape(line))
    for message in trace.messages:
        branch = tree.add(f"[bold]-> {escape(message.sink or 'through')}[/]  key {escape(message.key)}")
        branch.add(escape(", ".join(f"{name}={value}" for name, value in message.headers.items())))
        branch.add(escape(json.dumps(message.value, ensure_ascii=False)))
    return tree


def _fetch(settings: Settings, topic: str, partition: int, offset: int) -> bytes:
    """Read one record of a topic of this deployment."""
    name = topic if "." in topic else f"{settings.prefix}.{topic or 'raw'}"
    deadline = time.monotonic() + 20
    with reading(settings) as consumer:
        consumer.assign([TopicPartition(name, partition, offset)])
        while time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None and message.offset() == offset:
                return message.value() or b""
            if message is not None:
                break
    raise UsageError(f"there is no record {offset} in partition {partition} of {name}", hint="headwater topics")
