"""A page of the docs with sections that are written by different runs: each leaves the others as they are."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = "# Reliability\n\nWhat Headwater has survived. Each section is written by the run that it names.\n"
SECTION = re.compile(r"^<!-- section: (?P<name>.+?) -->\n(?P<text>.*?)(?=^<!-- section: |\Z)", re.MULTILINE | re.DOTALL)


def put_section(page: Path, name: str, text: str) -> None:
    """Write a section of the page, in its old place or as the last one; `text` is Markdown and ends in a new line."""
    found = {
        match["name"]: match["text"].strip() for match in SECTION.finditer(page.read_text() if page.exists() else "")
    }
    found[name] = text.strip()
    page.write_text(HEAD + "".join(f"\n<!-- section: {one} -->\n\n{words}\n" for one, words in found.items()))


def table(*rows: tuple[str, ...]) -> list[str]:
    """Return the lines of a table: what is on the left, figures on the right; the first row is its head."""
    head, *others = rows
    return [f"| {' | '.join(row)} |" for row in (head, ("---", *["---:"] * (len(head) - 1)), *others)]
