"""What came of a soak of the sources, as a section of the docs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from headwater.lab.page import table

DYNAMODB = (
    "Made by `make soak-sources`. A simulator of DynamoDB and its streams does all that AWS may do: throttles, errors,",
    "empty and short answers, iterators that expire, late listings, shards that end, records trimmed unread, tables that",
    "come and go.",
)
KINESIS = (
    "Made by `make soak-sources`. A simulator of Kinesis delivers four tables' changes, some twice, some late, into streams",
    "that are polled or pushed, with and without a window of resequencing, split and merged; two grow to 64 shards. It",
    "throttles, fails, cuts subscriptions off. In order means: as they happened within a window, as delivered without.",
)


def name(options: SoakOptions) -> str:
    """Return the name of the section."""
    return "soak sources --kinesis" if options.kinesis else "soak sources"


def section(report: SoakReport, options: SoakOptions, began: datetime, machine: str) -> str:
    """Return the section as Markdown."""
    verdict = "Nothing was lost silently, duplicated or reordered." if report.ok else "**The output was wrong.**"
    figures = [
        ("changes recorded by the streams", report.changes),
        ("lost, and in no recorded gap", report.lost),
        ("duplicated", report.duplicated),
        ("out of order", report.out_of_order),
        *(_of_kinesis(report) if options.kinesis else _of_dynamodb(report)),
        ("SIGKILL of a worker", report.kills),
        (
            "answers without records though there were some, for 6 s in a row, a worker's first ones among them",
            report.dry,
        ),
        ("times that the provider of credentials failed for 10 s", report.provider_failures),
        ("calls answered or refused", report.calls),
        ("seconds", report.seconds),
    ]
    flag = " --kinesis" if options.kinesis else ""
    lines = [
        "## Sources: Kinesis" if options.kinesis else "## Sources: DynamoDB Streams",
        "",
        *(KINESIS if options.kinesis else DYNAMODB),
        f"Three workers with `ingest` and `deduplicate` read {options.rate:,} changes a second; one is killed",
        "every 20 seconds. After every other kill AWS gives no records for 6 s, though there are some, also to the worker that",
        "comes back, and then the provider of credentials fails for 10 s. In the end the raw topic and the gaps are compared",
        "with what the simulator knows.",
        "",
        f"{verdict} {began:%Y-%m-%d %H:%M} UTC; {machine}.",
        "",
        *table(("", ""), *((what, f"{number:,}") for what, number in figures)),
        "",
        "The same history of the streams again, though not the same moments:",
        "",
        "```",
        f"headwater soak sources{flag} --seconds {options.seconds:g} --seed {report.seed} --rate {options.rate}",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _of_dynamodb(report: SoakReport) -> list[tuple[str, float]]:
    return [
        ("ranges of changes that were trimmed before they were read", report.trimmed_ranges),
        ("gaps recorded", report.gaps_recorded),
        ("shards that rolled over or were split", report.reshards),
        ("streams switched off, and on again as new ones", report.renewals),
        ("tables that came while the workers ran", report.tables_come),
        ("tables that were deleted", report.tables_gone),
    ]


def _of_kinesis(report: SoakReport) -> list[tuple[str, float]]:
    return [
        ("changes delivered after a newer one of their item", report.late),
        ("of these, marked late on raw: the others were put in order", report.marked),
        ("shards that were split or merged", report.reshards),
        ("shards open at once, of one stream", report.most_shards),
    ]


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """What the soak is asked to do."""

    directory: Path
    seconds: float = 60.0
    seed: int = 1
    rate: int = 1_500
    """Changes a second."""
    kinesis: bool = False
    """Tables that deliver into Kinesis, instead of streams of their own."""
    page: Path | None = None
    """Where to write the outcome, as a section of a page in Markdown."""


@dataclass(slots=True)
class SoakReport:
    """The outcome; printed by `--json`."""

    changes: int = 0
    lost: int = 0
    """Changes that are neither in raw nor in a recorded gap."""
    duplicated: int = 0
    out_of_order: int = 0
    """Against the order in which the changes happened; where Kinesis is not resequenced, in which they were delivered."""
    late: int = 0
    """Changes that Kinesis delivered after a newer one of their item."""
    marked: int = 0
    """Changes that are marked late on raw."""
    trimmed_ranges: int = 0
    """Ranges that the simulator trimmed before they were read."""
    gaps_recorded: int = 0
    reshards: int = 0
    most_shards: int = 0
    """Open at once, of one stream."""
    renewals: int = 0
    """Streams that were switched off, and on again as new ones."""
    tables_come: int = 0
    tables_gone: int = 0
    kills: int = 0
    dry: int = 0
    """Answers without records though there were some, for seconds in a row."""
    provider_failures: int = 0
    """Times that the provider of credentials has failed, for `FAIL_SECONDS` each."""
    calls: int = 0
    seconds: float = 0.0
    seed: int = 0

    @property
    def ok(self) -> bool:
        """Whether every change came out once, in order, or is known to be lost."""
        return not (self.lost or self.duplicated or self.out_of_order)

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)
