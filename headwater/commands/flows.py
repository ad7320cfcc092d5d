"""`headwater flows`: check, test, show and apply flows."""

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

app = typer.Typer(help="Check, test, show and apply flows.", no_args_is_help=True)


@app.command()
def apply(
    check: Annotated[bool, typer.Option("--check", help="Only check whether they can be applied.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the workers.")] = False,
    seconds: Annotated[
        float, typer.Option("--wait", min=0, help="Longest time to wait for the workers, in seconds.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Apply the flows of the settings file to all workers, without a restart. Exit 1 when a worker does not run them."""
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
    say(f"version {version.number} {'is published' if new else 'already has these flows'}")
    if detach:
        if as_json:
            print_json({"version": version.number, "new": new})
        return
    found = applying.wait(settings, version, seconds)
    for worker, reason in found.refused.items():
        say(f"{worker} refuses: {reason}")
    for worker in found.waiting:
        say(f"{worker} does not run it after {seconds:g} s: headwater status")
    if not (found.taken or found.refused or found.waiting):
        say("no worker runs flows now: workers use this version when they start")
    else:
        say(f"{len(found.taken)} workers run it")
    if settings.lake.url:
        say("restart the workers that run the agent lake to have new sinks in the lake")
    if as_json:
        names = {"taken": found.taken, "refused": found.refused, "waiting": found.waiting}
        print_json({"version": version.number, "new": new, **names})
    if found.refused or found.waiting:
        raise typer.Exit(1)


@app.command()
def lint(as_json: Json = False) -> None:
    """Find parts of flows that can have no effect: patterns and names that no change has. Exit 1 when there are any."""
    from pipeline.flows.check import doubts_of, examine
    from pipeline.settings.load import load

    settings = load()
    for flow in settings.flows:
        examine(settings, flow)
    found = [doubt for flow in settings.flows for doubt in doubts_of(flow)]
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        for one in found:
            print_text(one.line)
        if not found:
            count = len(settings.flows)
            say(
                f"{count} flow{'s' * (count != 1)}: nothing found" if count else "there is no [[flows]] in the settings"
            )
    if found:
        raise typer.Exit(1)


@app.command()
def test(
    place: Annotated[Path, typer.Argument(help="Golden files: a directory, or one file.")] = Path("flow-tests"),
    update: Annotated[bool, typer.Option("--update", help="Write what the flows produce now into the files.")] = False,
    as_json: Json = False,
) -> None:
    """Run the flows on the events of golden files, and compare the results. Exit 1 when one differs."""
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
    file: Annotated[Path, typer.Argument(help="The new file. An existing file is never overwritten.")],
    as_json: Json = False,
) -> None:
    """Write a new key for masks: 32 random bytes, in a file that only its owner may read."""
    from pipeline.services.keys import new_key as write

    write(file)
    if as_json:
        print_json({"mask_key": f"file:{file.absolute()}"})
    say(
        f'mask_key = "file:{file.absolute()}"; keep this file: no token is reversed and no sealed dead letter opened without it'
    )


@app.command()
def graph(
    form: Annotated[Literal["mermaid", "svg"], typer.Option("--format", help="The format of the picture.")] = "mermaid",
    as_json: Json = False,
) -> None:
    """Print the flows of the settings as a picture: tables, steps, sinks."""
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
    pattern: Annotated[Path, typer.Argument(help="A file with a pattern in EventBridge's syntax.")],
    events: Annotated[Path, typer.Argument(help="A file with events, one JSON object per line. -: stdin.")] = Path("-"),
    count: Annotated[bool, typer.Option("--count", help="Print only how many match.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --count, print JSON. Events are printed as JSON anyway.")
    ] = False,
) -> None:
    """Print the events that match a pattern, unchanged. Exit 1 when a line is not JSON."""
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
            f"{events}: {tally.unreadable} of {tally.lines} lines are not JSON; the first is {tally.first_unreadable}"
        )
