"""What a chaos is asked to do and what came of it; the outcome as a section of the docs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from headwater.lab.page import table

SECTION = "chaos"
CALM = 20.0
"""Seconds after which a fault that is not over gets no other on top: its time to recover is then its own."""
STUCK = 60.0
"""Seconds after which something must have come out of every partition again."""
MEANING = {
    "kill": "SIGKILL of a worker",
    "freeze": "SIGSTOP of a worker until the group has evicted it, then SIGCONT: a zombie",
    "terminate": "SIGTERM of a worker",
    "join": "one more worker, or one that leaves permanently",
    "kill at finish": "SIGKILL of a worker just before it commits",
    "kill at commit": "SIGKILL of a worker while its commit is under way",
    "kill at committed": "SIGKILL of a worker between the commit and the write of its state",
    "kill in recovery": "the state directory is lost, and SIGKILL while it is being recovered",
    "restart broker": "SIGTERM of the broker, and its start",
    "kill broker": "SIGKILL of the broker with records in an open transaction, and its start",
    "lose state": "SIGKILL of a worker, and its state directory is empty when it comes back",
    "fill disk": "the disk of the state directory is full until the worker has ended with the reason, twice",
    "retention": "all workers are stopped, and changes that they have not read are deleted, as retention does",
    "retention while frozen": "SIGSTOP of a worker, all changes are deleted, as retention does, then SIGCONT",
    "recreate sink": "the sink topic is deleted and recreated while the workers run",
    "refuse": "the sink topic refuses a change that is too large",
    "sleep": "a step sleeps at one change for longer than a transaction may last",
    "slow step": "a step is slow at every change, for a while",
}


@dataclass(frozen=True)
class ChaosOptions:
    """What the chaos is asked to do."""

    directory: Path
    faults: int = 12
    seed: int = 1
    rate: int = 5_000
    """Changes a second."""
    guarantee: str = "exactly_once"
    only: tuple[str, ...] = ()
    """Do these faults alone; (): all."""
    page: Path | None = None
    """Where to write the outcome, as a section of a page in Markdown."""


@dataclass
class ChaosReport:
    """The outcome; printed by `--json`."""

    faults: dict[str, int] = field(default_factory=dict)
    input: int = 0
    output: int = 0
    lost: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    stuck: int = 0
    """Faults after which nothing came out of some partition within `STUCK` seconds."""
    slowest: float = 0.0
    """Seconds until every partition moved again, at most."""
    gaps: int = 0
    in_gaps: int = 0
    """Changes that were deleted before they were read, as the gaps say: they are not lost."""
    sunk: int = 0
    """Changes in the sink topic, in all its logs."""
    dead_letters: int = 0
    fenced: int = 0
    aborted: int = 0
    seconds: float = 0.0
    seed: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    """Faults that could not be done on this machine, and why."""

    @property
    def ok(self) -> bool:
        """Whether every change came out once, in order, or is known to be lost, and no fault lasted."""
        return not (self.lost or self.duplicated or self.out_of_order or self.stuck)

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def section(report: ChaosReport, options: ChaosOptions, began: datetime, machine: str) -> str:
    """Return the section as Markdown."""
    verdict = "Nothing was lost, duplicated, reordered or stuck." if report.ok else "**The output was wrong.**"
    figures = [
        ("changes written, each with its own event ID", report.input),
        ("deleted before they were read, and in a recorded gap", report.in_gaps),
        ("changes in the raw topic", report.output),
        ("changes in the sink topic, and in the lake", report.sunk),
        ("dead letters of the flow", report.dead_letters),
        ("lost", report.lost),
        ("duplicated", report.duplicated),
        ("out of order", report.out_of_order),
        (f"faults after which a partition was idle for more than {STUCK:.0f} s", report.stuck),
        ("seconds until every partition moved again, at most", report.slowest),
        ("slices that were aborted and processed again", report.aborted),
        ("times that the broker or the worker itself refused a worker without its partitions", report.fenced),
        ("seconds", report.seconds),
    ]
    only = "".join(f' --only "{name}"' for name in options.only)
    lines = [
        "## Workers and broker",
        "",
        "Made by `make chaos`. Two or three workers with `deduplicate`, `transform` and `lake` work on 4 partitions, at",
        f"{options.rate:,} records a second, a fifth of them duplicates. Every few seconds one of the faults below happens,",
        f"in an order that the seed decides; one that is not over after {CALM:.0f} s is waited for. In the end all that was",
        "written is compared with what a committed reader finds in the raw topic and in all that the sink topic was, with the",
        "dead letters, and with the files of the lake.",
        "",
        f"{verdict} {began:%Y-%m-%d %H:%M} UTC; {machine}.",
        "",
        *table(("", ""), *((name, f"{number:,}") for name, number in figures)),
        "",
        *table(("fault", "times"), *((MEANING[name], str(report.faults[name])) for name in sorted(report.faults))),
        "",
        *(f"Left out, {name}: {why}\n" for name, why in report.left_out.items()),
        "The same schedule again, though not the same moments:",
        "",
        "```",
        f"headwater chaos --faults {sum(report.faults.values())} --seed {report.seed} --rate {options.rate}{only}",
        "```",
    ]
    return "\n".join(lines) + "\n"
