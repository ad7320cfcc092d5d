"""Programs that are fetched once for all checkouts: kept in the user's cache, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from headwater.lab import processes

RECIPES = Path(__file__).parent / "recipes"
MADE_FROM = ".made-from"
FETCH_SECONDS = 900.0


def directory() -> Path:
    """Return `${XDG_CACHE_HOME:-~/.cache}/headwater`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headwater"


def recipe(name: str) -> Path:
    """Return a file of the package that says what to fetch, such as kafka/pom.xml."""
    return RECIPES / name


def is_cached(name: str, made_from: Path) -> bool:
    """Tell whether `name` is there, whole, and made from this very recipe."""
    stamp = directory() / name / MADE_FROM
    return stamp.is_file() and stamp.read_text().strip() == _digest(made_from)


def cached(name: str, made_from: Path, make: Callable[[Path], None]) -> Path:
    """Return the directory `name` in the cache; where it is not there, have it made, by one process at a time.

    `make` fills the directory that it is given. It gets its name only when it is complete, so that an
    interrupted fetch is never taken for a cache; what is inside must therefore not depend on that name.
    """
    target = directory() / name
    if is_cached(name, made_from):
        return target
    directory().mkdir(parents=True, exist_ok=True)
    with (directory() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_cached(name, made_from):  # nobody else made it while we waited
            _make(target, made_from, make)
    return target


def copy_jars(pom: Path, into: Path) -> None:
    """Copy the runtime dependencies of a pom into a directory, by the machine's Maven."""
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime"]
    command = ["mvn", "-q", "-B", "-f", str(pom), *goal, f"-DoutputDirectory={into}"]
    fetch(command, what=f"the jars of {pom}", again=f"mvn -f {pom} {goal[0]} -DoutputDirectory=/tmp/jars")


def fetch(command: list[str], *, what: str, again: str) -> None:
    """Run a program that fetches something; raise HeadwaterError when it fails."""
    code, output = processes.run(command, seconds=FETCH_SECONDS)
    if code != 0:
        raise processes.explained(f"{Path(command[0]).name} could not fetch {what}", output, hint=again)


def _make(target: Path, made_from: Path, make: Callable[[Path], None]) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of one that was interrupted: we hold the lock
    partial.mkdir()
    make(partial)
    (partial / MADE_FROM).write_text(_digest(made_from) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
