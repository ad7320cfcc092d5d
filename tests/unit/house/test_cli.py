"""The command line: one table of its commands, an answer at once, help and completion everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from headwater.cli import app
from headwater.groups import COMMANDS, commands_of, loaded

HEAVY = {
    "aiohttp",
    "aiokafka",
    "boto3",
    "botocore",
    "confluent_kafka",
    "cryptography",
    "duckdb",
    "faust",
    "msgspec",
    "numpy",
    "orjson",
    "pyarrow",
    "pydantic",
    "rocksdict",
}
"""What takes its time to import."""
ROOT = typer.main.get_command(app)


def walk(command: Any = ROOT, *path: str) -> Iterator[tuple[str, Any]]:
    if path:
        yield " ".join(path), command
    for name, inner in commands_of(command).items():
        yield from walk(inner, *path, name)


EVERY = dict(walk())


def shown(*words: str) -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, list(words), prog_name="headwater")
    assert result.exit_code == 0, result.output
    return result.output


def run(*words: str, **environment: str) -> tuple[str, set[str]]:
    """What the command prints, and the modules and packages that it has imported."""
    code = (
        "import sys\n"
        "from headwater.cli import main\n"
        f"sys.argv = ['headwater', *{words!r}]\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    sys.stderr.write(' '.join(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = done.stderr.split()
    return done.stdout, {*modules, *(name.partition(".")[0] for name in modules)}


@pytest.mark.parametrize(
    "words",
    [("--help",), ("-h",), ("--version",), ("flows", "--help"), ("flows", "lint", "-h"), ("local", "--help")],
    ids=" ".join,
)
def test_a_start_that_only_shows_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    printed, imported = run(*words)
    assert printed
    assert imported & HEAVY == set()


def test_the_list_of_commands_imports_no_command() -> None:
    _, found = run("--help")
    assert {name for name in found if name.startswith("headwater.commands.")} == set()
    assert {name for name in found if name.startswith("pipeline.")} == {
        "pipeline.errors",
        "pipeline.packages",
        "pipeline.packages.own_packages",
    }


@pytest.mark.parametrize(
    ("line", "at", "expected"),
    [("headwater ", "1", set(COMMANDS)), ("headwater dl", "1", {"dlq"}), ("headwater flows li", "2", {"lint"})],
)
def test_completion_knows_the_commands_and_imports_nothing_heavy(line: str, at: str, expected: set[str]) -> None:
    printed, imported = run(_HEADWATER_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=at)
    assert set(printed.split()) == expected
    assert imported & HEAVY == set()


def test_the_script_for_completion_is_printed() -> None:
    printed, _ = run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete -o default -F _headwater_completion headwater" in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_of_each_command_what_the_command_says(name: str) -> None:
    command, line = loaded(name), COMMANDS[name]
    assert command.name == name
    assert (command.help or "").split("\n\n")[0].replace("\n", " ") == line.help
    assert isinstance(command, TyperGroup) == (line.target.endswith(":app") or name == "soak")


def test_every_module_of_commands_is_in_the_table() -> None:
    folder = Path(__file__).parents[3] / "headwater/commands"
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert {line.target.partition(":")[0] for line in COMMANDS.values()} == modules


@pytest.mark.parametrize("path", EVERY)
def test_every_command_shows_its_help_in_three_ways(path: str) -> None:
    words = path.split()
    assert shown(*words, "-h") == shown(*words, "--help") == shown("help", *words)


@pytest.mark.parametrize("path", EVERY)
def test_no_help_is_cut_off_on_a_terminal_of_80_columns(path: str) -> None:
    assert "…" not in shown(*path.split(), "--help")


def test_help_alone_lists_the_commands() -> None:
    assert shown("help") == shown("--help")
    for name in COMMANDS:
        assert f" {name} " in shown("--help")


@pytest.mark.parametrize(("typed", "meant"), [("staus", "status"), ("flow", "flows"), ("dql", "dlq")])
def test_a_command_that_is_mistyped_is_answered_with_the_near_one(typed: str, meant: str) -> None:
    result = CliRunner().invoke(app, [typed], prog_name="headwater")
    assert result.exit_code == 2
    assert f"Did you mean '{meant}'?" in result.output.replace("\n", " ")


def test_a_mistyped_command_of_a_group_is_answered_with_the_near_one() -> None:
    for words in (["lake", "verfy"], ["help", "lake", "verfy"]):
        result = CliRunner().invoke(app, words, prog_name="headwater")
        assert result.exit_code == 2
        assert "Did you mean 'verify'?" in result.output


NO_JSON = {"run", "help"}
"""`run` becomes the worker, which logs; `help` is text."""


@pytest.mark.parametrize("path", [path for path, command in EVERY.items() if command.callback is not None])
def test_every_command_that_prints_has_json(path: str) -> None:
    command = EVERY[path]
    if isinstance(command, TyperGroup) and not command.invoke_without_command:
        return
    assert any("--json" in parameter.opts for parameter in command.params) == (path not in NO_JSON)
