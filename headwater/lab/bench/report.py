"""How the results are shown: a table for the terminal and for Markdown, and a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from rich.console import Console

from headwater.console import print_table
from headwater.lab.machine import describe

if TYPE_CHECKING:
    from headwater.lab.bench.dedup import DedupResults
    from headwater.lab.bench.flows import FlowResults as Flowed
    from headwater.lab.bench.ingest import IngestResults as Ingested

HEADINGS = ("system", "records/s", "CPU us/record", "peak MiB", "missing", "doubled", "spread")
EXTRAS = {
    "p50_ms": "latency p50 at 5,000/s, ms",
    "p99_ms": "latency p99 at 5,000/s, ms",
    "recovery_ids_per_s": "cold recovery, IDs/s",
    "ready_s": "start to ready, s",
    "standstill_stay_s": "standstill when a worker joins or leaves, partitions that stay, s",
    "standstill_move_s": "standstill when a worker joins or leaves, partitions that move, s",
}
OWN, OTHER = "#0b6e99", "#9aa5b1"


def rows(results: DedupResults) -> list[tuple[str, ...]]:
    """Return the table's rows: medians, and the lowest and the highest throughput of the rounds."""
    found: list[tuple[str, ...]] = []
    for key, rounds in results.rounds.items():
        median = results.median(key)
        paces = [turn.records_per_s for turn in rounds]
        found.append(
            (
                results.titles[key],
                f"{median.records_per_s:,.0f}",
                f"{median.cpu_s_per_million:.1f}",
                f"{median.rss_mib:,.0f}",
                f"{median.outcome.missing:,}",
                f"{median.outcome.doubled:,}",
                f"{min(paces):,.0f} to {max(paces):,.0f}",
            )
        )
    return found


def facts(results: DedupResults) -> list[tuple[str, str]]:
    """Return what was measured of Headwater alone."""
    found = [(EXTRAS[name], f"{number:,}") for name, number in results.extras.items()]
    if results.growth:
        found.append(("records/s with 100 thousand IDs in the table", f"{results.growth.at_100k:,.0f}"))
        found.append(("records/s with 10 million IDs in the table", f"{results.growth.at_10m:,.0f}"))
        found.append(("peak MiB with 10 million IDs in the table", f"{results.growth.rss_mib:,.0f}"))
    return found


def show(results: DedupResults, console: Console) -> None:
    """Print the tables."""
    console.print(machine(results), style="dim", highlight=False)
    print_table(HEADINGS, rows(results), console)
    for name, text in facts(results):
        console.print(f"Headwater, exactly once: {name}: {text}", highlight=False)
    for title, why in results.left_out.items():
        console.print(f"left out: {title}: {why}", highlight=False)
    for failure in results.failures:
        console.print(f"[red]wrong output: {failure}[/red]")


def markdown(results: DedupResults) -> str:
    """Return the tables as Markdown."""
    lines = [machine(results), "", *markdown_table(HEADINGS, rows(results))]
    if extra := facts(results):
        lines += ["", *markdown_table(("Headwater, exactly once", ""), extra)]
    lines += [f"\nLeft out: {title}: {why}" for title, why in results.left_out.items()]
    return "\n".join(lines) + "\n"


def machine(results: DedupResults | Ingested | Flowed) -> str:
    """Describe the run and where it was made, in one line."""
    return f"{results.began:%Y-%m-%d %H:%M} UTC; {describe(results.broker)}; {results.messages:,} records a run"


def plot(results: DedupResults, directory: Path) -> Path:
    """Draw the throughput of all systems into the directory; return the picture, named by its date."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"dedup-{results.began:%Y-%m-%d}.png"
    picture(results).savefig(path, dpi=130)
    return path


def picture(results: DedupResults) -> Figure:
    """Return horizontal bars: the median, with a line from the lowest to the highest round."""
    keys = list(reversed(results.rounds))
    figure = Figure(figsize=(9, 1.4 + 0.42 * len(keys)), layout="constrained")
    axes = figure.subplots()
    for place, key in enumerate(keys):
        median, paces = results.median(key), [turn.records_per_s for turn in results.rounds[key]]
        spread = [[median.records_per_s - min(paces)], [max(paces) - median.records_per_s]]
        color = OWN if key.startswith("headwater") else OTHER
        axes.barh(place, median.records_per_s, xerr=spread, color=color, ecolor="#1b1f24", capsize=3)
        said = f"  {median.records_per_s:,.0f}/s, {median.cpu_s_per_million:.1f} us of CPU"
        axes.text(max(paces), place, said, va="center", fontsize=9)
    axes.set_yticks(range(len(keys)), [results.titles[key] for key in keys])
    axes.set_title("Deduplication: records a second, and CPU a record", loc="left", fontsize=12)
    axes.set_xlabel(textwrap.fill(machine(results), 120), fontsize=7, color="#57606a")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.35)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def markdown_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Return a table in Markdown, line by line."""
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return [f"| {' | '.join(row)} |" for row in (headings, rule, *cells)]
