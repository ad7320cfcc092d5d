"""`headwater dlq`: list, show, retry, edit and discard dead letters."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.console import Json, print_json, print_lines, print_table, print_text, say
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.operate.dead_letters import StoredDeadLetter
    from pipeline.settings.root import Settings

app = typer.Typer(
    help="List, show, retry, edit and discard dead letters: messages that were rejected.", no_args_is_help=True
)
Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="IDs of dead letters. Without IDs: all that match the options.")
]
FlowOption = Annotated[str, typer.Option("--flow", help="Only dead letters of this flow.")]
STAGES = ("ingest", "deduplicate", "transform", "lake", "mirror", "replica", "pubsub", "replay")
StageOption = Annotated[str, typer.Option("--stage", help=f"Only dead letters of this stage: {', '.join(STAGES)}.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Only dead letters whose reason contains this text.")]
Yes = Annotated[bool, typer.Option("--yes", help="Confirm: do it for all that match the options.")]


@app.command(name="list")
def list_letters(
    flow: FlowOption = "",
    stage: StageOption = "",
    reason: ReasonOption = "",
    done: Annotated[bool, typer.Option("--all", help="Also those that were retried, edited or discarded.")] = False,
    as_json: Json = False,
) -> None:
    """List dead letters, oldest first. JSON lines when the output is not a terminal. Exit 1 when there are open ones."""
    from pipeline.operate import dead_letters
    from pipeline.operate.dead_letters import DeadLetterFilter
    from pipeline.settings.load import load

    found = dead_letters.dead_letters(load(), DeadLetterFilter((), flow, stage, reason, done))
    if as_json or not sys.stdout.isatty():
        print_lines(one.json() for one in found)
    else:
        _print_letters(found)
    if any(one.state == "open" for one in found):
        raise typer.Exit(1)


def _print_letters(found: Sequence[StoredDeadLetter]) -> None:
    names = "id", "at", "state", "stage", "flow", "key", "reason"
    print_table(names, [[str(one.json()[name] or "") for name in names] for one in found])


@app.command()
def show(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="IDs of dead letters.")], as_json: Json = False
) -> None:
    """Print dead letters in full, as JSON: reason, origin, headers, value."""
    from pipeline.files import exact_json
    from pipeline.operate import dead_letters
    from pipeline.operate.dead_letters import DeadLetterFilter
    from pipeline.settings.load import load

    settings = load()
    found = [
        dead_letters.opened(settings, letter)
        for letter in dead_letters.dead_letters(settings, DeadLetterFilter(ids, done=True))
    ]
    if as_json or not sys.stdout.isatty():
        print_lines(one.whole() for one in found)
    else:
        for one in found:
            print_text(exact_json.dumps(one.whole(), indent=2))


@app.command()
def retry(
    ids: Ids = None,
    flow: FlowOption = "",
    stage: StageOption = "",
    reason: ReasonOption = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Retry dead letters in the step that rejected them. Changes that wait behind them continue when that succeeds."""
    from pipeline.operate import dead_letters
    from pipeline.settings.load import load

    settings = load()
    chosen = _chosen(settings, ids, flow, stage, reason, yes)
    _report("retried", dead_letters.retry(settings, chosen), as_json)


@app.command()
def skip(
    ids: Ids = None,
    flow: FlowOption = "",
    stage: StageOption = "",
    reason: ReasonOption = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Discard dead letters: they stay on the topic, but are no longer counted. Changes that wait behind them continue."""
    from pipeline.operate import dead_letters
    from pipeline.settings.load import load

    settings = load()
    chosen = _chosen(settings, ids, flow, stage, reason, yes)
    _report("skipped", dead_letters.skip(settings, chosen), as_json)


@app.command()
def edit(
    letter: Annotated[str, typer.Argument(metavar="ID", help="The ID of a dead letter.")],
    file: Annotated[
        Path | None, typer.Argument(help="A file with the new value. -: stdin. Default: $EDITOR is opened.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Retry a dead letter with a new value. The dead letter itself is not changed."""
    from pipeline.files.content import content
    from pipeline.operate import dead_letters
    from pipeline.operate.dead_letters import DeadLetterFilter
    from pipeline.settings.load import load

    settings = load()
    (sealed,) = dead_letters.dead_letters(settings, DeadLetterFilter((letter,), done=True))
    one = dead_letters.opened(settings, sealed)
    value = _edited(one) if file is None else sys.stdin.buffer.read() if file == Path("-") else content(file)
    if value.strip() == (one.value or b"").strip():
        say("the value is unchanged: nothing was done")
        if as_json:
            print_json({"edited": 0})
        return
    _report("edited", dead_letters.retry(settings, [sealed], value), as_json)


def _chosen(
    settings: Settings, ids: list[str] | None, flow: str, stage: str, reason: str, yes: bool
) -> list[StoredDeadLetter]:
    from pipeline.operate import dead_letters
    from pipeline.operate.dead_letters import DeadLetterFilter

    if not ids and not yes:
        raise UsageError("expected IDs of dead letters, or options and --yes", hint="headwater dlq list")
    found = dead_letters.dead_letters(settings, DeadLetterFilter(tuple(ids or ()), flow, stage, reason, done=bool(ids)))
    for one in found:
        if one.state != "open":
            say(f"{one.id} was already {one.state}: ignored")
    return [one for one in found if one.state == "open"]


def _report(what: str, count: int, as_json: bool) -> None:
    if as_json:
        print_json({what: count})
    else:
        say(f"{count} {what}")


def _edited(one: StoredDeadLetter) -> bytes:
    """Let the user edit the value, indented where it is JSON."""
    import msgspec

    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        text = msgspec.json.format(one.value or b"", indent=2)
    except msgspec.DecodeError:
        text = one.value or b""
    with tempfile.NamedTemporaryFile(prefix=f"dead-letter-{one.id}-", suffix=".json") as file:
        file.write(text)
        file.flush()
        try:
            subprocess.run([*editor, file.name], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UsageError(
                f"the editor {editor[0]} failed: {error}", hint=f"headwater dlq edit {one.id} FILE"
            ) from error
        new = Path(file.name).read_bytes()
    return (one.value or b"") if new.strip() == text.strip() else new
