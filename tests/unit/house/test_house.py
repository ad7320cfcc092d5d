"""What the repository promises about itself."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_nothing_is_built_and_no_environment_read_at_import() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("agents", "models", "pipeline")
        for path in (ROOT / package).rglob("*.py")
        if path.name not in {"__init__.py", "worker.py", "chaos_worker.py", "tether.py"} and "bench" not in path.parts
    ]
    code = (
        "import os, sys, importlib, threading\n"
        "class Watched(dict):\n"
        "    pass\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    environment = {"HEADWATER_NONSENSE": "1", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
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
