"""How the results are shown: a table for the terminal and for Markdown, and a picture as SVG, drawn by hand."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pipeline.lab.machine import describe

if TYPE_CHECKING:
    from pipeline.lab.bench.dedup import Results

HEADINGS = ("system", "records/s", "CPU us/record", "peak MiB", "missing", "doubled", "spread")
EXTRAS = {
    "p50_ms": "latency p50 at 5,000/s, ms",
    "p99_ms": "latency p99 at 5,000/s, ms",
    "recovery_ids_per_s": "cold recovery, IDs/s",
    "ready_s": "start to ready, s",
    "standstill_stay_s": "standstill when a worker joins or leaves, partitions that stay, s",
    "standstill_move_s": "standstill when a worker joins or leaves, partitions that move, s",
}
BAR_HEIGHT, LEFT, WIDTH, RIGHT = 34, 250, 420, 190


def rows(results: Results) -> list[tuple[str, ...]]:
    """Return the table's rows: medians, and the lowest and the highest throughput of the rounds."""
    found: list[tuple[str, ...]] = []
    for key, rounds in results.rounds.items():
        median = results.median(key)
        paces = [one.records_per_s for one in rounds]
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


def facts(results: Results) -> list[tuple[str, str]]:
    """Return what was measured of Headwater alone."""
    found = [(EXTRAS[name], f"{number:,}") for name, number in results.extras.items()]
    if results.growth:
        found.append(("records/s with 100 thousand IDs in the table", f"{results.growth.at_100k:,.0f}"))
        found.append(("records/s with 10 million IDs in the table", f"{results.growth.at_10m:,.0f}"))
        found.append(("peak MiB with 10 million IDs in the table", f"{results.growth.rss_mib:,.0f}"))
    return found


def show(results: Results, console: Console) -> None:
    """Print the tables."""
    console.print(machine(results), style="dim", highlight=False)
    table = Table(*HEADINGS)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows(results):
        table.add_row(*row)
    console.print(table)
    for name, text in facts(results):
        console.print(f"Headwater, exactly once: {name}: {text}", highlight=False)
    for title, why in results.left_out.items():
        console.print(f"left out: {title}: {why}", highlight=False)
    for failure in results.failures:
        console.print(f"[red]wrong output: {failure}[/red]")


def markdown(results: Results) -> str:
    """Return the tables as Markdown."""
    lines = [machine(results), "", *_markdown_table(HEADINGS, rows(results))]
    if extra := facts(results):
        lines += ["", *_markdown_table(("Headwater, exactly once", ""), extra)]
    lines += [f"\nLeft out: {title}: {why}" for title, why in results.left_out.items()]
    return "\n".join(lines) + "\n"


def machine(results: Results) -> str:
    """Describe the run and where it was made, in one line."""
    return f"{results.began:%Y-%m-%d %H:%M} UTC; {describe(results.broker)}; {results.messages:,} records a run"


def plot(results: Results, directory: Path) -> Path:
    """Draw the throughput of all systems into the directory; return the picture, named by its date."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"dedup-{results.began:%Y-%m-%d}.svg"
    path.write_text(picture(results))
    return path


def picture(results: Results) -> str:
    """Return horizontal bars as SVG: the median, with a line from the lowest to the highest round."""
    bars = [
        (results.titles[key], results.median(key), [one.records_per_s for one in rounds], key.startswith("headwater"))
        for key, rounds in results.rounds.items()
    ]
    longest = max((max(paces) for _, _, paces, _ in bars), default=1.0) or 1.0
    height = 70 + BAR_HEIGHT * len(bars)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{height}" '
            'font-family="system-ui, sans-serif" font-size="13" role="img">'
        ),
        "<title>Deduplication: records a second</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        (
            '<text x="12" y="24" font-size="16" font-weight="600" fill="#1b1f24">Deduplication: records a second, '
            "and CPU a record</text>"
        ),
    ]
    for number, (title, median, paces, own) in enumerate(bars):
        top = 40 + BAR_HEIGHT * number
        middle = top + BAR_HEIGHT / 2 - 3
        length, low, high = (WIDTH * pace / longest for pace in (median.records_per_s, min(paces), max(paces)))
        color = "#0b6e99" if own else "#9aa5b1"
        lines += [
            f'<text x="{LEFT - 10}" y="{middle + 4:.0f}" text-anchor="end" fill="#1b1f24">{escape(title)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{length:.0f}" height="{BAR_HEIGHT - 10}" rx="2" fill="{color}"/>',
            f'<path d="M{LEFT + low:.0f} {middle:.0f} H{LEFT + high:.0f}" stroke="#1b1f24" stroke-width="1.5"/>',
            (
                f'<text x="{LEFT + high + 8:.0f}" y="{middle + 4:.0f}" fill="#1b1f24">{median.records_per_s:,.0f}/s, '
                f"{median.cpu_s_per_million:.1f} us</text>"
            ),
        ]
    lines.append(
        f'<text x="12" y="{height - 10}" font-size="10" fill="#57606a">{escape(machine(results)[:150])}</text></svg>'
    )
    return "\n".join(lines) + "\n"


def _markdown_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return [f"| {' | '.join(row)} |" for row in (headings, rule, *cells)]
