"""Dockerfiles as data: there is no Docker engine in the tests."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from support.paths import ROOT

DOCKER = ROOT / "docker"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile: name and rest, continuation lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in joined)]


def context(dockerfile: Path) -> set[str]:
    """Return what goes to the builder: the files and folders that the .dockerignore beside a Dockerfile lets through."""
    lines = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text().splitlines()
    assert "*" in lines, "all is ignored but what is named"
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


def follow(dockerfile: Path, directory: Path, environment: Mapping[str, str]) -> None:
    """Do in `directory` what the first stage of a Dockerfile does in its work directory: its COPY and RUN lines.

    `environment` is laid over that of the Dockerfile. What brings uv is left out: it is here.
    """
    variables: dict[str, str] = {}
    stages = 0
    for name, rest in instructions(dockerfile):
        stages += name == "FROM"
        if stages != 1:
            continue
        if name in {"ARG", "ENV"}:
            variables |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                assert source in context(dockerfile), f"{source} does not go to the builder"
                _copy(ROOT / source, directory / target / (Path(source).name if target.endswith("/") else ""))
        elif name == "RUN" and not rest.startswith("pip install "):
            command = re.sub(r"--mount=\S+", "", rest)
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=directory,
                env={**os.environ, **variables, **environment},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert stages > 1, "what is built is copied into an image of its own"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
