"""What the modules of `faust_rows` say about themselves; read, not imported: some of them cannot be imported."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "faust_rows"
VERDICTS = ("works", "different", "refused")


@dataclass(frozen=True)
class Facts:
    """One row."""

    row: str
    feature: str
    group: str
    verdict: str
    how: str = ""
    says: str = ""
    """What the log of a worker says that ends."""
    state: str = "kept"
    """What happens to the state directory when the worker is killed: kept or lost; or the worker is not killed."""
    keys: Sequence[str] = ()
    """Keys of what is sent without an event."""
    topics: Sequence[str] = ()
    """Topics that are made beside `in` and `out`."""
    partitions: dict[str, int] = field(default_factory=dict)
    """Topics with another number of partitions."""


def facts() -> list[Facts]:
    """Return all rows."""
    return [_read(path) for path in sorted(ROWS.glob("[a-z]*.py"))]


def _read(path: Path) -> Facts:
    names = {one.name.upper() for one in fields(Facts)}
    constants: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and (name := node.targets[0].id) in names
        ):
            constants[name.lower()] = ast.literal_eval(node.value)
    row = Facts(path.stem, **constants)
    assert row.verdict in VERDICTS, path
    return row
