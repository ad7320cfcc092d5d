"""What the pages have somebody type is parsed by the command line itself: commands, options, values, and what must be given."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer
from support.paths import ROOT
from typer._click.exceptions import ClickException, NoArgsIsHelpError  # it has no public name for them

from headwater.cli import app
from headwater.groups import commands_of
from pipeline.runtime.entry_points import known_agents

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SHELLS = {"", "sh", "bash", "console"}
PAGES = [page for page in sorted(ROOT.rglob("*.md")) if not {".venv", "reference"} & set(page.parts)]
PROGRAM = "headwater"


def commands_in(block: str) -> Iterator[list[str]]:
    """The command lines of a block, without variables and prompts, each as its words."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # an apostrophe: what a command has printed
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if re.fullmatch(r"[();<>|&]+", word):
                while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                    command.pop(0)
                if command and Path(command[0]).name == PROGRAM:
                    yield [word for word in command if word != "..."]
                command = []
            else:
                command.append(word)


def typed() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            if match[1] in SHELLS:
                found += [(f"{page.relative_to(ROOT)}:{line}", words) for words in commands_in(match[2])]
    return found


def refusal(words: list[str]) -> str:
    """Why the command line does not take these words; ''."""
    command: Any = typer.main.get_command(app)
    name, rest, context = PROGRAM, words[1:], None
    try:
        while True:
            with redirect_stdout(io.StringIO()):
                context = command.make_context(name, rest, parent=context)
            rest = [*context._protected_args, *context.args]
            if not rest or not commands_of(command):
                break
            name, command, rest = command.resolve_command(context, rest)
    except (typer.Exit, NoArgsIsHelpError):
        return ""
    except ClickException as error:
        return error.format_message()
    agents = {one.partition(".")[0] for one in context.params.get("agents") or () if not one.isupper()}
    return f"no agent {agents}" if command.name == "run" and not agents <= set(known_agents()) else ""


@pytest.mark.parametrize(
    ("page", "words"), typed(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_command_on_a_page_is_taken(page: str, words: list[str]) -> None:
    assert refusal(words) == "", page


def test_commands_are_found_on_many_pages() -> None:
    assert len(typed()) > 60
    assert len({page.partition(":")[0] for page, _ in typed()}) > 15


def test_commands_are_found_behind_variables_and_pipes() -> None:
    block = "A=b headwater status # look\n$ .venv/bin/headwater dlq list | jq . && headwater gaps\nheadwater demo \\\n --seed 3"
    found = [" ".join(words[1:]) for words in commands_in(block)]
    assert found == ["status", "dlq list", "gaps", "demo --seed 3"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("headwater snapshot", "Missing argument"),
        ("headwater snapshot orders --units many", "valid number"),
        ("headwater snapshot orders --segments 0", "greater than or equal to 1"),
        ("headwater local up --broker rabbit", "rabbit"),
        ("headwater lake ddl", "Missing option"),
        ("headwater status orders", "unexpected extra argument"),
        ("headwater lake verfy", "No such command"),
        ("headwater gaps --jsn", "No such option"),
        ("headwater run ingets", "no agent"),
    ],
)
def test_a_command_that_is_not_taken_would_be_noticed(line: str, why: str) -> None:
    assert why in refusal(shlex.split(line))
