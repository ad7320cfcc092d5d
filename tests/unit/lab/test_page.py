"""The page that several runs write, and the section of the soak."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from headwater.lab.page import put_section
from headwater.lab.soak_report import SoakOptions, SoakReport, section


def test_a_section_is_written_again_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    put_section(page, "one", "## One\n\nold\n")
    put_section(page, "two", "## Two\n\n| a |\n")
    put_section(page, "one", "## One\n\nnew\n")
    text = page.read_text()
    assert text.startswith("# Reliability\n")
    assert "old" not in text
    assert text.index("## One\n\nnew\n") < text.index("## Two\n\n| a |\n")
    put_section(page, "one", "## One\n\nnew\n")
    assert page.read_text() == text


def test_the_section_of_the_soak_has_the_figures_and_the_command() -> None:
    options = SoakOptions(Path("any"), seconds=600, seed=7, rate=1_000)
    report = SoakReport(changes=12_345, gaps_recorded=17, tables_gone=3, seed=7)
    text = section(report, options, datetime(2026, 3, 1, tzinfo=UTC), "a machine")
    assert "Nothing was lost silently, duplicated or reordered. 2026-03-01 00:00 UTC; a machine." in text
    assert "| changes recorded by the streams | 12,345 |" in text
    assert "| gaps recorded | 17 |" in text
    assert "headwater soak sources --seconds 600 --seed 7 --rate 1000" in text
    report.lost = 1
    assert "**The output was wrong.**" in section(report, options, datetime(2026, 3, 1, tzinfo=UTC), "")
