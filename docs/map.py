"""Write the map of CONTRIBUTING.md from the code: python docs/map.py.

Each wing with what its docstring says, its size and its largest module. With --check it writes nothing and exits 1 when a wing
is missing from the map or described otherwise; sizes may be older.
"""  # noqa: INP001 - a script

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- The map: made by docs/map.py -->", "<!-- The end of the map -->"
TOP = ("agents", "headwater", "models", "pipeline")


def wings() -> list[Path]:
    """Return the folders of the map: the four packages, the wings of `pipeline`, and what is large within them."""
    found = []
    for name in TOP:
        found.append(ROOT / name)
        found += sorted(path.parent for path in (ROOT / name).glob("*/__init__.py"))
    return found


def modules(wing: Path) -> list[Path]:
    """Return the modules that belong to a wing and to none below it that has a line of its own."""
    others = [other for other in wings() if other != wing and other.is_relative_to(wing)]
    return [path for path in wing.rglob("*.py") if not any(path.is_relative_to(other) for other in others)]


def says(wing: Path) -> str:
    """Return the first sentence of a wing's docstring."""
    text = ast.get_docstring(ast.parse((wing / "__init__.py").read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].rstrip(".")


def lines_of(path: Path) -> int:
    """Return the number of lines of a module."""
    return len(path.read_text(encoding="utf-8").splitlines())


def table() -> str:
    """Return the map, as a Markdown table."""
    rows = ["| wing | what lives there | modules | lines | largest |", "|---|---|---|---|---|"]
    for wing in wings():
        files = modules(wing)
        largest = max(files, key=lines_of)
        rows.append(
            f"| `{wing.relative_to(ROOT)}/` | {says(wing)} | {len(files)} | {sum(map(lines_of, files)):,} | "
            f"`{largest.relative_to(wing)}` {lines_of(largest)} |"
        )
    return "\n".join(rows)


def _described(text: str) -> list[tuple[str, ...]]:
    """Return wing and description of each row of a map."""
    return re.findall(r"^\| (`[^|]+/`) \| ([^|]+) \|", text, re.MULTILINE)


def main() -> int:
    """Write the map, or with --check say whether it is what the code says."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    new = table()
    if "--check" in sys.argv[1:]:
        if _described(old) == _described(new):
            return 0
        sys.stderr.write("CONTRIBUTING.md: the map is stale (try: make docs)\n")
        return 1
    PAGE.write_text(f"{before}{BEGIN}\n\n{new}\n\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
