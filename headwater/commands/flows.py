"""`headwater flows`: look at flows, try them, and have the workers run them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from headwater.console import Json, print_json, print_text, say
from pipeline.errors import HeadwaterError, UsageError

app = typer.Typer(help="Look at flows, try them, and have the workers run them.", no_args_is_help=True)


@app.command()
def apply(
    check: Annotated[bool, typer.Option("--check", help="Only say whether they can be applied.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the workers.")] = False,
    seconds: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the workers at most.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Have all workers run the flows of the settings file, without a restart. Exit 1 when one has not taken them up."""
    from pipeline.flows import apply as applying
    from pipeline.settings import root as settings_module
    from pipeline.settings.load import load

    settings, file = load(), settings_module.config_file(os.environ)
    for warning in applying.validate(settings, file):
        say(f"warning: {warning}")
    if check:
        say(f"{file}: {len(settings.flows)} flows can be applied")
        if as_json:
            print_json({"flows": [flow.name for flow in settings.flows]})
        return
    version, new = applying.apply(settings)
    say(f"version {version.number} {'is published' if new else 'has these flows already'}")
    if detach:
        if as_json:
            print_json({"version": version.number, "new": new})
        return
    found = applying.wait(settings, version, seconds)
    for worker, reason in found.refused.items():
        say(f"{worker} refuses: {reason}")
    for worker in found.waiting:
        say(f"{worker} has not taken it up in {seconds:g} s: headwater status")
    if not (found.taken or found.refused or found.waiting):
        say("no worker runs flows now: the next one takes it up when it starts")
    else:
        say(f"{len(found.taken)} workers run it")
    if settings.lake.url:
        say("a sink that is new gets into the lake when the workers with the agent lake are restarted")
    if as_json:
        names = {"taken": found.taken, "refused": found.refused, "waiting": found.waiting}
        print_json({"version": version.number, "new": new, **names})
    if found.refused or found.waiting:
        raise typer.Exit(1)


@app.command()
def lint(as_json: Json = False) -> None:
    """Show what of the flows can hardly have an effect: patterns and names that no change has. Exit 1 when there is any."""
    from pipeline.flows.check import doubts_of, examine
    from pipeline.settings.load import load

    settings = load()
    for flow in settings.flows:
        examine(settings, flow)
    found = [one for flow in settings.flows for one in doubts_of(flow)]
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        for one in found:
            print_text(one.line)
    if found:
        raise typer.Exit(1)


@app.command()
def test(
    place: Annotated[Path, typer.Argument(help="Golden files: a directory, or one file.")] = Path("flow-tests"),
    update: Annotated[bool, typer.Option("--update", help="Write into the files what the flows make now.")] = False,
    as_json: Json = False,
) -> None:
    """Run the flows on the events of golden files, and compare with what they expect. Exit 1 when one differs."""
    from pipeline.flows import golden
    from pipeline.settings.load import load

    settings = load()
    verdicts = [golden.check(file, settings, update=update) for file in golden.cases(place)]
    if as_json:
        print_json([{"file": str(one.file), "ok": one.ok, "differences": one.differences} for one in verdicts])
    for verdict in verdicts:
        say(f"{'ok  ' if verdict.ok else 'FAIL'} {verdict.file}")
        for line in verdict.differences:
            say(f"     {line}")
    if not all(one.ok for one in verdicts):
        raise typer.Exit(1)


@app.command(name="new-key")
def new_key(
    file: Annotated[Path, typer.Argument(help="Where to write it; never over a file that is there.")],
    as_json: Json = False,
) -> None:
    """Write a key for masks: 32 random bytes that only the owner of the file may read."""
    from pipeline.services.keys import new_key as write

    write(file)
    if as_json:
        print_json({"mask_key": f"file:{file.absolute()}"})
    say(f'mask_key = "file:{file.absolute()}"; without this file nobody undoes a token or opens a dead letter')


@app.command()
def graph(
    form: Annotated[Literal["mermaid", "svg"], typer.Option("--format", help="The form of the picture.")] = "mermaid",
    as_json: Json = False,
) -> None:
    """Print the flows of the settings as a picture: tables, what is done with their changes, sinks."""
    from pipeline.flows import graph as graphing
    from pipeline.settings.load import load

    flows = load().flows
    draw = {"mermaid": graphing.mermaid, "svg": graphing.svg}[form]
    if as_json:
        print_json({"format": form, "graph": draw(flows)})
    else:
        sys.stdout.write(draw(flows))


@app.command()
def match(
    pattern: Annotated[Path, typer.Argument(help="A file with a pattern, as EventBridge takes it.")],
    events: Annotated[Path, typer.Argument(help="Events, one JSON object a line; -: stdin.")] = Path("-"),
    count: Annotated[bool, typer.Option("--count", help="Print how many match, not which.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --count, print JSON to stdout. Events are JSON already.")
    ] = False,
) -> None:
    """Print the events that a pattern matches, as they came. Exit 1 when a line is no JSON."""
    from pipeline.flows.match import Matcher, Tally

    matcher, tally = Matcher(pattern), Tally()
    try:
        with suppress(BrokenPipeError), sys.stdin.buffer if events == Path("-") else events.open("rb") as lines:
            found = matcher.of(lines, tally)
            if count:
                matched = sum(1 for _ in found)
                sys.stdout.write(f"{matched}\n") if not as_json else print_json({"matched": matched, "of": tally.lines})
            else:
                sys.stdout.buffer.writelines(found)
    except OSError as error:
        raise UsageError(f"{events}: {error.strerror}", hint=f"ls {events.parent}") from error
    if tally.unreadable:
        raise HeadwaterError(
            f"{events}: {tally.unreadable} of {tally.lines} lines are no JSON, the first is {tally.first_unreadable}"
        )
