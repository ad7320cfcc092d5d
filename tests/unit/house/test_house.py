"""What the repository promises about itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from honcho.environ import parse_procfile  # type: ignore[import-untyped]
from support.paths import ROOT

from pipeline.runtime.entry_points import known_agents


def test_the_procfile_has_one_line_an_agent() -> None:
    procfile = parse_procfile((ROOT / "Procfile").read_text())
    assert set(procfile.processes) == set(known_agents())
    states = []
    for name, command in procfile.processes.items():
        match = re.fullmatch(r"HEADWATER_STATE_DIR=(\S+) headwater run (\w+) --without-web", command)
        assert match is not None, command
        assert match[2] == name
        states.append(match[1])
    assert len(set(states)) == len(states), "a state directory belongs to one worker"


def test_make_shows_what_there_is_to_make() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("setup", "demo", "test", "check"):
        assert re.search(rf"^  make {target} +\w", shown, re.MULTILINE)


WATCH = """
import collections.abc, importlib, os, sys, threading

OURS = {ours!r}
read, copies = [], set()  # a package that gives all of the environment to a program that it starts asks for nothing

def watched(method):
    def call(self, *arguments):
        frame = sys._getframe(1)
        while frame.f_code.co_filename in (os.__file__, collections.abc.__file__, "<frozen os>", "<frozen _collections_abc>"):
            frame = frame.f_back
        place = f"{{frame.f_code.co_filename}}:{{frame.f_lineno}}"
        if not arguments:
            copies.add(place)
        name = arguments[0] if arguments else "all of it"
        asked = str(name).startswith(("HEADWATER_", "AWS_")) and place not in copies
        if asked or place.startswith(OURS):
            read.append(f"{{place}} reads {{name}}")
        return method(self, *arguments)
    return call

for name in ("__getitem__", "__contains__", "__iter__", "copy"):
    setattr(os._Environ, name, watched(getattr(os._Environ, name)))
for name in {modules!r}:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
assert not read, read
"""
"""Imports modules, and fails when one starts a thread, reads the environment, or has a variable of ours or of AWS read."""
PACKAGES = ("agents", "headwater", "models", "pipeline")


def importing(root: Path, modules: Sequence[str]) -> subprocess.CompletedProcess[str]:
    code = WATCH.format(ours=tuple(f"{root / package}{os.sep}" for package in PACKAGES), modules=list(modules))
    environment = {"HEADWATER_PREFIX": "other", "AWS_DEFAULT_REGION": "eu-west-1", "PATH": "/usr/bin"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_is_built_and_no_environment_read_at_import() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name not in {"worker.py", "chaos_worker.py", "tether.py"} and "bench" not in path.parts
    ]
    assert len(modules) > 150
    done = importing(ROOT, modules)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line",
    [
        'os.environ.get("HEADWATER_PREFIX")',
        'os.getenv("AWS_DEFAULT_REGION")',
        'os.environ["PATH"]',
        '"HOME" in os.environ',
        "dict(os.environ)",
        'netrc_of.expand("$HEADWATER_PREFIX")',
    ],
)
def test_a_module_that_reads_the_environment_at_import_would_be_noticed(line: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").touch()
    (tmp_path / "models/reads.py").write_text(f"import os\nimport netrc_of\n\nFOUND = {line}\n")
    (tmp_path / "netrc_of.py").write_text("import os\nexpand = os.path.expandvars\n")
    done = importing(tmp_path, ["models.reads"])
    assert done.returncode == 1
    assert "reads" in done.stderr


def test_a_module_that_reads_the_environment_when_it_is_called_is_fine(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").touch()
    (tmp_path / "models/reads.py").write_text('import os\n\ndef found() -> str:\n    return os.environ["PATH"]\n')
    done = importing(tmp_path, ["models.reads"])
    assert done.returncode == 0, done.stderr


def test_functions_of_users_are_typed_by_what_they_import(tmp_path: Path) -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert [name for name in packages["packages"] if not (ROOT / name / "py.typed").is_file()] == []
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from headwater import Change, enrich\n\n\n"
        '@enrich("size")\ndef size(change: Change) -> dict[str, int]:\n    return {"size": len(change.after or {})}\n'
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), mine.name]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
