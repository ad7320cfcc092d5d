"""What Faust's own tests say, compared with what is known of them: passed, failed, refused.

`known.toml` lists what is left out, and what fails and why. This module is pure, but for reading that file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

HERE = Path(__file__).parent
KNOWN = HERE / "known.toml"
State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """How one test ended, and what it says."""

    test: str
    state: State
    says: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Tests that are not run: a path, or the name of one."""

    what: str
    why: str


@dataclass(frozen=True)
class KnownFailure:
    """A test that fails. `refused`: words of the error by which the transport refuses what the test does, by design."""

    test: str
    why: str
    refused: str = ""


@dataclass(frozen=True)
class Known:
    """What is known of Faust's tests of one version."""

    version: str
    left_out: Sequence[LeftOut]
    fails: Sequence[KnownFailure]


@dataclass
class Report:
    """Outcomes, sorted."""

    passed: list[Outcome] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    refused: list[Outcome] = field(default_factory=list)
    skipped: list[Outcome] = field(default_factory=list)
    news: list[Outcome] = field(default_factory=list)
    """Of `failed`, those that are not listed."""
    better: list[str] = field(default_factory=list)
    """Listed tests that pass."""
    absent: list[str] = field(default_factory=list)
    """Listed tests that were not run."""

    @property
    def counts(self) -> str:
        """The line at the end."""
        return f"passed {len(self.passed)}, failed {len(self.failed)}, refused {len(self.refused)}"


def known(path: Path = KNOWN) -> Known:
    """Read the list."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return Known(
        version=content["version"],
        left_out=[LeftOut(**entry) for entry in content.get("left_out", [])],
        fails=[KnownFailure(**entry) for entry in content.get("fails", [])],
    )


def sort(outcomes: Iterable[Outcome], fails: Sequence[KnownFailure]) -> Report:
    """Compare what the tests say with the list."""
    listed, report, seen = {entry.test: entry for entry in fails}, Report(), set()
    for outcome in outcomes:
        seen.add(outcome.test)
        entry = listed.get(outcome.test)
        if outcome.state == "skipped":
            report.skipped.append(outcome)
        elif outcome.state == "passed":
            report.passed.append(outcome)
            if entry is not None:
                report.better.append(outcome.test)
        elif entry is not None and entry.refused and entry.refused in outcome.says:
            report.refused.append(outcome)
        else:
            report.failed.append(outcome)
            if entry is None or entry.refused:  # refused otherwise than the list says
                report.news.append(outcome)
    report.absent = [entry.test for entry in fails if entry.test not in seen]
    return report


def of_pytest(junit: str) -> list[Outcome]:
    """Read pytest's report in JUnit's form (family xunit1, which has the files)."""
    found: dict[str, Outcome] = {}
    for case in ET.fromstring(junit).iter("testcase"):  # noqa: S314 - pytest has just written it
        file, name = case.get("file", ""), case.get("name", "")
        module = file.removesuffix(".py").replace("/", ".")
        classes = case.get("classname", "").removeprefix(module).strip(".").split(".")
        test = "::".join([file, *filter(None, classes), name])
        bad = [part for part in case if part.tag in ("failure", "error")]
        if bad:
            outcome = Outcome(
                test, "failed", "\n".join(f"{part.get('message', '')}\n{part.text or ''}" for part in bad)
            )
        else:
            outcome = Outcome(test, "skipped" if case.find("skipped") is not None else "passed")
        if test not in found or outcome.state == "failed":  # an error of the teardown is a case of its own
            found[test] = outcome
    return list(found.values())


def rows(path: Path = KNOWN) -> list[tuple[str, str, str]]:
    """Return a row for each test that fails, for the page: its name, failed or refused, and why."""
    return [
        (f"`{entry.test}`", "refused" if entry.refused else "failed", _sentence(entry.why))
        for entry in known(path).fails
    ]


def rows_left_out(path: Path = KNOWN) -> list[tuple[str, str]]:
    """Return a row for what is not run, and why."""
    return [(f"`{entry.what}`", _sentence(entry.why)) for entry in known(path).left_out]


def _sentence(words: str) -> str:
    return " ".join(words.split())
