"""How the results of the benchmark `ingest` are shown."""

from __future__ import annotations

from rich.console import Console

from headwater.console import print_table
from headwater.lab.bench.ingest import IDLE_SHARDS, PLAIN, IngestResults, title
from headwater.lab.bench.report import machine, markdown_table

HEADINGS = ("system", "changes/s", "CPU us/change", "server's CPU us/change", "missing", "doubled", "spread")


def rows(results: IngestResults) -> list[tuple[str, ...]]:
    """Return the table's rows: medians, and the lowest and the highest throughput of the rounds."""
    found: list[tuple[str, ...]] = []
    for key, rounds in results.rounds.items():
        median = results.median(key)
        paces = [turn.changes_per_s for turn in rounds]
        found.append(
            (
                title(key),
                f"{median.changes_per_s:,.0f}",
                f"{median.cpu_s_per_million:.1f}",
                f"{median.server_cpu_s_per_million:.1f}",
                f"{median.outcome.missing:,}",
                f"{median.outcome.doubled:,}",
                f"{min(paces):,.0f} to {max(paces):,.0f}",
            )
        )
    return found


def facts(results: IngestResults) -> list[str]:
    """Return the ratios and the costs of idling, in words."""
    idle, found = results.idle, []
    if PLAIN in results.rounds and "8" in results.rounds:
        paces = {key: results.median(key).changes_per_s for key in results.rounds}
        if paces[PLAIN]:
            found.append(f"8 shards over the plain boto3 loop: {paces['8'] / paces[PLAIN]:.1f} times (target 15)")
        if "64" in paces and paces["8"]:
            found.append(f"64 shards over 8 shards: {paces['64'] / paces['8']:.2f} (target 0.88)")
    calls = f"{idle.calls_per_s:.1f} calls/s, {idle.cpu_share:.1%} of a core (target 3 %)"
    return [*found, f"{IDLE_SHARDS} idle shards: {calls}"]


def show(results: IngestResults, console: Console) -> None:
    """Print the table."""
    console.print(machine(results), style="dim", highlight=False)
    print_table(HEADINGS, rows(results), console)
    for fact in facts(results):
        console.print(fact, highlight=False)
    for failure in results.failures:
        console.print(f"[red]wrong output: {failure}[/red]")


def markdown(results: IngestResults) -> str:
    """Return the table and the facts as Markdown."""
    return "\n".join([machine(results), "", *markdown_table(HEADINGS, rows(results)), "", *facts(results)]) + "\n"
