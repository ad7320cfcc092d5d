"""How the results of the benchmark `flows` are shown."""

from __future__ import annotations

from rich.console import Console

from headwater.console import print_table
from headwater.lab.bench.flows import RATIOS, TARGETS, FlowResults, all_systems
from headwater.lab.bench.report import machine, markdown_table

HEADINGS = ("flow", "system", "changes/s", "CPU us/change", "missing", "doubled", "spread")


def rows(results: FlowResults) -> list[tuple[str, ...]]:
    """Return the table's rows: medians, and the lowest and the highest throughput of the rounds."""
    titles = {system.key: system.title for system in all_systems()}
    found: list[tuple[str, ...]] = []
    for (task, system), rounds in results.rounds.items():
        median = results.median(task, system)
        if median is None:
            continue
        paces = [turn.per_s for turn in rounds]
        found.append(
            (
                task,
                titles[system],
                f"{median.per_s:,.0f}",
                f"{median.cpu_us:.1f}",
                f"{median.outcome.missing:,}",
                f"{median.outcome.doubled:,}",
                f"{min(paces):,.0f} to {max(paces):,.0f}",
            )
        )
    return sorted(found, key=lambda row: list(results.as_json()).index(row[0]))


def targets(results: FlowResults) -> list[tuple[str, str, str]]:
    """Return what was aimed at, and what was seen."""
    found = []
    for task, paces in results.as_json().items():
        ours = paces.get("headwater", 0)
        if task in TARGETS:
            found.append((f"{task}, changes/s", f"{ours:,}", f"{TARGETS[task]:,}"))
        for peer, ratio in RATIOS.items():
            if paces.get(peer):
                found.append((f"{task} over {peer}", f"{ours / paces[peer]:.1f}", f"{ratio:g}"))
    return found


def show(results: FlowResults, console: Console) -> None:
    """Print the tables."""
    console.print(machine(results), style="dim", highlight=False)
    print_table(HEADINGS, rows(results), console)
    print_table(("", "seen", "target"), targets(results), console)
    for title, why in results.left_out.items():
        console.print(f"left out: {title}: {why}", highlight=False)
    for failure in results.failures:
        console.print(f"[red]wrong output: {failure}[/red]")


def markdown(results: FlowResults) -> str:
    """Return the tables as Markdown."""
    tables = [*markdown_table(HEADINGS, rows(results)), "", *markdown_table(("", "seen", "target"), targets(results))]
    return "\n".join([machine(results), "", *tables]) + "\n"
