"""Run Faust's own tests on this transport: make faust-tests.

They come with faust-streaming's source distribution, of the version in uv.lock, from the package index; or from
FAUST_SOURCE=/path/to/its/checkout. They run in an environment of their own in .headwater/faust-tests, with Apache Kafka beside.
`known.toml` says what is left out, and what fails and why: a test that fails and is not listed there makes this exit 1.

make faust-tests FAUST_TESTS="functional stress/tests/tables tests/unit/web": only what has one of these words in its name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headwater.lab import kafka, processes
from pipeline.errors import HeadwaterError
from upstream import results, stress
from upstream.results import Known, Outcome, Report

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PLACE = ROOT / ".headwater" / "faust-tests"
SOURCE = PLACE / "source"
PYTHON = PLACE / "venv" / "bin" / "python"
PIP = "pip==25.3"
PARTS = ("unit", "functional", "integration", "meticulous", "regression")
"""The folders of Faust's tests that pytest runs; the applications in `stress` are not tests for it."""
INI = "[pytest]\nasyncio_mode = auto\ntimeout = 300\n"
"""Faust's own measures coverage too; a test that hangs is given up."""


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def call(words: Sequence[str | Path], what: str, hint: str) -> None:
    """Run a program; when it fails, raise HeadwaterError with its last line."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(PLACE / "venv")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise processes.explained(what, done.stdout, hint=hint)


def prepare_environment(version: str) -> None:
    """Make the environment: what is locked, Headwater itself, and what Faust's tests need."""
    uv = Path(sys.executable).with_name("uv")
    say(f"preparing {PLACE.relative_to(ROOT)}/venv, with faust-streaming {version} as locked")
    sync = (uv, "sync", "--frozen", "--no-dev", "--quiet", "--python", sys.executable)
    needs = ("--quiet", "--python", PYTHON, "--requirements", HERE / "requirements.txt", PIP)
    hint = "are package indexes reached? uv says more: " + " ".join(map(str, sync[1:]))
    call(sync, "the environment of Faust's tests cannot be made", hint)
    call((uv, "pip", "install", *needs), "what Faust's tests need cannot be installed", hint)


def locked(name: str) -> tuple[str, str]:
    """Return the version and the hash of the source distribution of a package in uv.lock."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    found = next(package for package in packages if package["name"] == name)
    return found["version"], found["sdist"]["hash"].removeprefix("sha256:")


def require_same(known: Known, version: str) -> None:
    """Raise HeadwaterError when the list is of another version of Faust."""
    if version != known.version:
        raise HeadwaterError(
            f"{results.KNOWN} is of Faust {known.version}, and uv.lock has {version}",
            hint=f'write version = "{version}" there, and see what fails',
        )


def fetch(version: str, digest: str) -> None:
    """Have Faust's tests in SOURCE: of the checkout that is named, or of the source distribution."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    if checkout := os.environ.get("FAUST_SOURCE"):
        if not Path(checkout, "tests/functional").is_dir():
            raise HeadwaterError(
                f"FAUST_SOURCE={checkout}: no tests/functional there", hint="git clone Faust, at the tag of its version"
            )
        shutil.copytree(Path(checkout, "tests"), SOURCE / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        say(f"Faust's tests: of {checkout}; this transport is tested with {version}")
    else:
        archive = PLACE / f"faust_streaming-{version}.tar.gz"
        if not archive.exists():
            say(f"fetching the source distribution of faust-streaming {version}")
            words = (PYTHON, "-m", "pip", "download", "--no-deps", "--no-binary", "faust-streaming", "--dest", PLACE)
            call(
                (*words, f"faust-streaming=={version}"),
                f"the source distribution of faust-streaming {version}, which has Faust's tests, cannot be had",
                "FAUST_SOURCE=/path/to/a/checkout make faust-tests",
            )
        if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
            raise HeadwaterError(f"{archive}: not the file that uv.lock names", hint=f"rm {archive}")
        with tarfile.open(archive) as content:
            top = f"faust_streaming-{version}/tests/"
            members = [member for member in content.getmembers() if member.name.startswith(top)]
            for member in members:
                member.name = member.name.removeprefix(f"faust_streaming-{version}/")
            content.extractall(SOURCE, members, filter="data")
    (SOURCE / "t").symlink_to("tests")  # their name when the stress applications were written
    (PLACE / "pytest.ini").write_text(INI)


@contextmanager
def broker() -> Iterator[str]:
    """Run Apache Kafka, and return its address."""
    shutil.rmtree(PLACE / "kafka", ignore_errors=True)
    started = kafka.apache_kafka(PLACE / "kafka", "Faust's tests need it", say)
    process = started.start(detached=False)
    try:
        started.wait_until_ready(process)
        yield started.address
    finally:
        processes.stop([process])


def run_pytest(servers: str, paths: Sequence[str], left_out: Sequence[str]) -> list[Outcome]:
    """Run tests of Faust's by pytest, and return what they say."""
    report = PLACE / "report.xml"
    report.unlink(missing_ok=True)
    words = [
        PYTHON,
        "-W",
        "ignore",
        "-m",
        "pytest",
        "-p",
        "faust_plugin",
        "-p",
        "no:cacheprovider",
        "-c",
        PLACE / "pytest.ini",
    ]
    words += [
        "--rootdir",
        SOURCE,
        "-q",
        "--disable-warnings",
        "--tb=short",
        "-o",
        "junit_family=xunit1",
        f"--junitxml={report}",
    ]
    words += [f"--deselect={what}" for what in left_out]
    done = subprocess.run(
        [*map(str, words), *paths],
        cwd=SOURCE,
        env={
            **os.environ,
            "PYTHONPATH": str(HERE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HEADWATER_FAUST_BROKER": f"headwater://{servers}",
        },
        check=False,
    )
    if done.returncode > 1 or not report.exists():  # 1: some failed
        raise HeadwaterError(f"pytest could not run Faust's tests: exit code {done.returncode}", hint="see above")
    return results.of_pytest(report.read_text(encoding="utf-8"))


def run(known: Known, words: Sequence[str]) -> Report:
    """Run what the words choose; all without any."""
    paths = [f"tests/{part}" for part in PARTS if not words or any(word in f"tests/{part}" for word in words)]
    paths += [word for word in words if word.startswith("tests/") and not word.startswith("tests/stress")]
    names = [name for name in stress.CHECKS if not words or any(word in f"tests/stress/tests/{name}" for word in words)]
    left_out = [entry.what for entry in known.left_out]
    outcomes: list[Outcome] = []
    with broker() as servers:
        if paths:
            outcomes += run_pytest(servers, list(dict.fromkeys(paths)), left_out)
            again = [outcome.test for outcome in results.sort(outcomes, known.fails).news]
            if again and len(again) <= 20:  # some of them measure time
                say(f"{len(again)} failed that are not listed: once more, alone")
                second = {outcome.test: outcome for outcome in run_pytest(servers, again, left_out)}
                outcomes = [second.get(outcome.test, outcome) for outcome in outcomes]
        if names:
            directory = PLACE / "stress"
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            stresses = stress.Stress(servers, SOURCE, PYTHON, directory)
            stresses.prepare()
            for name in names:
                say(f"the stress application {name}: two workers, killed and started again")
                outcomes += stresses.run(name)
    report = results.sort(outcomes, known.fails)
    if words:
        report.absent = []
    return report


def show(report: Report, known: Known, seconds: float) -> None:
    """Print what is listed and what is not; the counts last."""
    why = {entry.test: entry.why for entry in known.fails}
    for outcome in report.refused:
        say(f"refused: {outcome.test}: {' '.join(why[outcome.test].split())}")
    for outcome in report.failed:
        if outcome not in report.news:
            say(f"failed, as listed: {outcome.test}: {' '.join(why[outcome.test].split())}")
    for outcome in report.news:
        say(f"FAILED, and not listed so in {results.KNOWN.name}: {outcome.test}\n{outcome.says[:2000]}")
    for test in report.better:
        say(f"passes, though listed in {results.KNOWN.name}: {test}")
    for test in report.absent:
        say(f"was not run, though listed in {results.KNOWN.name}: {test}")
    say(
        f"left out: {len(known.left_out)} paths, see {results.KNOWN.name}; skipped by Faust itself: {len(report.skipped)}"
    )
    say(f"{seconds / 60:.0f} minutes")
    say(report.counts)


def main() -> int:
    """Run, print, and return the exit code."""
    started = time.monotonic()
    known = results.known()
    version, digest = locked("faust-streaming")
    try:
        require_same(known, version)
        prepare_environment(version)
        fetch(version, digest)
        report = run(known, sys.argv[1:])
    except HeadwaterError as error:
        say(f"{error.message} (try: {error.hint})")
        return 1
    show(report, known, time.monotonic() - started)
    return 1 if report.news or report.absent else 0


if __name__ == "__main__":
    sys.exit(main())
