"""`headwater explain`: what the flows do with one event, as a tree."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.console import Json, print_drawn, print_json
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from rich.tree import Tree

    from pipeline.flows.explain import FlowTrace
    from pipeline.settings.root import Settings


def explain(
    event: Annotated[Path | None, typer.Argument(help="A JSON file with one change, as on the topic raw.")] = None,
    topic: Annotated[
        str,
        typer.Option(help="Read the event from this topic instead. The prefix may be left out.", show_default="raw"),
    ] = "",
    partition: Annotated[int, typer.Option(min=0, help="The partition of the event.")] = 0,
    offset: Annotated[int, typer.Option(min=-1, help="The offset of the event.", show_default=False)] = -1,
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="Reference data for joins, one item per line: TABLE.jsonl (typed JSON), topic:NAME.jsonl (keys and values)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what each flow does with an event: which condition decided, what each step did, where it would go."""
    from models.change import MalformedChangeError
    from pipeline.files.content import content
    from pipeline.flows import given_items
    from pipeline.flows.compile import onlooking
    from pipeline.flows.explain import explain as explain_event
    from pipeline.settings.load import load

    settings = load()
    if (event is None) == (offset < 0):
        raise UsageError("expected a file, or --topic, --partition and --offset", hint="headwater explain --help")
    value = content(event) if event is not None else _fetch(settings, topic, partition, offset)
    references = {file.stem: given_items.read_items(file) for file in reference or ()}
    try:
        traces = explain_event(settings.flows, value, onlooking(settings.flows, settings.modules, references))
    except MalformedChangeError as error:
        raise UsageError(f"{event or topic}: {error}", hint=given_items.HINT) from error
    if as_json:
        print_json([trace.json() for trace in traces])
        return
    for trace in traces:
        print_drawn(_tree(trace))


COLOURS = {"sent": "green", "left out": "yellow", "rejected": "red"}


def _tree(trace: FlowTrace) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    from pipeline.files import exact_json

    reason = f": {escape(trace.reason)}" if trace.reason else ""
    waits = f"waits up to {trace.waits:g} s for its reference, then is " if trace.waits else ""
    tree = Tree(f"flow [bold]{escape(trace.flow)}[/]  {waits}[{COLOURS[trace.outcome]}]{trace.outcome}[/]{reason}")
    for step in trace.steps:
        branch = tree.add(f"{escape(step.step)}: {escape(step.outcome)}")
        for line in step.details:
            branch.add(escape(line))
    for message in trace.messages:
        branch = tree.add(f"[bold]-> {escape(message.sink or 'through')}[/]  key {escape(message.key)}")
        branch.add(escape(", ".join(f"{name}={value}" for name, value in message.headers.items())))
        branch.add(escape(exact_json.dumps(message.value)))
    return tree


def _fetch(settings: Settings, topic: str, partition: int, offset: int) -> bytes:
    """Read one record of a topic; raise FatalError when the cluster cannot be reached."""
    from confluent_kafka import TopicPartition

    from pipeline.topics.admin import admin, look
    from pipeline.topics.names import Topic
    from pipeline.topics.read import READ_TIMEOUT_S, reading

    wanted = topic or "raw"
    names = (f"{settings.prefix}.{wanted}", wanted)  # of both, that of this deployment
    asked = look(admin(settings.kafka.conf), [Topic(name, 0, "explained") for name in names])
    found = next((one for one in asked if one.partitions), None)
    if found is None:
        raise UsageError(f"there is no topic {names[0]} or {names[1]}", hint="headwater topics")
    name = found.wanted.name
    if partition >= found.partitions:
        raise UsageError(f"{name} has partitions 0 to {found.partitions - 1}", hint="headwater topics")
    deadline = time.monotonic() + READ_TIMEOUT_S
    with reading(settings) as consumer:
        consumer.assign([TopicPartition(name, partition, offset)])
        while time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None and message.offset() == offset:
                return message.value() or b""
            if message is not None:
                break
    raise UsageError(f"there is no record {offset} in partition {partition} of {name}", hint="headwater topics")
