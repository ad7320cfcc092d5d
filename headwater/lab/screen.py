"""The demo's screen: live progress, then the verdict."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headwater.lab.demo import DemoProgress, DemoReport


class Screen:
    """Shows the progress while it runs: a live table on a terminal, a line for each new note elsewhere."""

    def __init__(self, console: Console, progress: DemoProgress) -> None:
        self._console, self._progress = console, progress
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> Group:
        p = self._progress
        stages = [
            ("DynamoDB: changes written", p.written, p.total),
            ("ingest: with duplicates", p.ingested, p.total + p.duplicates_injected),
            ("deduplicate: dropped", min(p.duplicates_dropped, p.duplicates_injected), p.duplicates_injected),
            ("raw: every change once", p.raw, p.total),
            *((f"sink {sink}", count, 0) for sink, count in p.sinks.items()),
            ("lake: Parquet files", p.parquet_files, 0),
        ]
        table = Table.grid(padding=(0, 2))
        for name, count, total in stages:
            bar = ProgressBar(total=total, completed=min(count, total), width=30) if total else Text("")
            table.add_row(name, f"[bold]{count:>8,}[/]", bar)
        return Group(Text(p.note, style="dim"), table)


def show(console: Console, report: DemoReport) -> None:
    """Print the verdict."""
    mark = "[bold green]PROVED[/]" if report.ok else "[bold red]FAILED[/]"
    console.print(
        f"{mark} {report.written:,} changes written; lost {report.lost}, duplicated {report.duplicated}, "
        f"out of order {report.out_of_order}, altered {report.altered}",
        highlight=False,
    )
    console.print(
        f"       {report.duplicates_injected:,} duplicates injected, {report.duplicates_dropped:,} dropped; "
        f"{sum(report.sinks.values()):,} messages in {len(report.sinks)} sinks ({report.joined:,} joined, "
        f"{report.masked:,} names masked), "
        f"{report.parquet_rows:,} rows in {report.parquet_files:,} Parquet files; "
        f"{report.seconds} s on {report.broker}",
        highlight=False,
        soft_wrap=True,
    )
    if (copies := report.copies) is not None:
        console.print(
            f"       {copies.mirrored:,} messages on a second cluster ({copies.mirror_differences} differ); "
            f"{copies.lake_rows:,} rows read by DuckDB ({copies.lake_differences} faults); {copies.iceberg_items:,} items "
            f"in an Iceberg table ({copies.iceberg_differences} differ), {copies.replica_items:,} in a replica "
            f"({copies.replica_differences} differ); {copies.replayed:,} messages replayed "
            f"({copies.replay_differences} differ)",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print(
            "       the fallback broker is too small for the mirror, the replica, the Iceberg table and the replay"
        )
    for example in report.examples:
        console.print(f"       {example}", markup=False, highlight=False, soft_wrap=True)
