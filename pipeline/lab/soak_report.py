"""What came of a soak of the sources, as a section of the docs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.lab.page import table

if TYPE_CHECKING:
    from pipeline.lab.soak import Options, Report

SECTION = "soak sources"


def section(report: Report, options: Options, began: datetime, machine: str) -> str:
    """Return the section as Markdown."""
    verdict = "Nothing was lost without a word, doubled or reordered." if report.ok else "**The output was wrong.**"
    figures = [
        ("changes recorded by the streams", report.changes),
        ("lost, and in no gap that was written down", report.lost),
        ("duplicated", report.duplicated),
        ("out of order", report.out_of_order),
        ("ranges of changes that were trimmed before they were read", report.trimmed_ranges),
        ("gaps written down", report.gaps_recorded),
        ("shards that rolled over or were split", report.reshards),
        ("streams switched off, and on again as new ones", report.renewals),
        ("tables that came while the workers ran", report.tables_come),
        ("tables that were deleted", report.tables_gone),
        ("SIGKILL of a worker", report.kills),
        ("calls answered or refused", report.calls),
        ("seconds", report.seconds),
    ]
    lines = [
        "## Sources",
        "",
        "Made by `make soak-sources`. A simulator of DynamoDB and its streams does all that AWS may do: throttles, errors,",
        "empty and short answers, iterators that expire, late listings, shards that end, records trimmed unread, tables that",
        f"come and go. Three workers with `ingest` and `deduplicate` read {options.rate:,} changes a second; one is killed",
        "every 20 seconds. In the end the raw topic and the gaps are held against what the simulator knows.",
        "",
        f"{verdict} {began:%Y-%m-%d %H:%M} UTC; {machine}.",
        "",
        *table(("", ""), *((name, f"{number:,}") for name, number in figures)),
        "",
        "The same history of the streams again, though not the same moments:",
        "",
        "```",
        f"headwater soak sources --seconds {options.seconds:g} --seed {report.seed} --rate {options.rate}",
        "```",
    ]
    return "\n".join(lines) + "\n"
