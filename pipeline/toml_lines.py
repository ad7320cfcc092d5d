"""Where in a TOML file a setting stands, for messages: `tomllib` does not say."""

from __future__ import annotations

import re
from collections.abc import Sequence

TABLE = re.compile(r"^\s*\[(\[)?\s*([^\]]+?)\s*\]")


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """Return the line, from 1 on, of the setting at a path such as ("flows", 1, "to", 0, "where"); None: it is not found.

    As near as can be told: the innermost name of the path that is found, within the entry of the list that it is in.
    """
    lines = text.splitlines()
    names = [part for part in path if isinstance(part, str)]
    if not names:
        return None
    begin, end, found = 0, len(lines), None
    if len(path) > 1 and isinstance(path[1], int):
        begin, end = _entry(lines, names[0], path[1])
        if begin < 0:
            return None
        found, names = begin, names[1:]
    else:
        headers = [n for n, line in enumerate(lines) if (match := TABLE.match(line)) and match[2] == names[0]]
        if headers and len(names) > 1:
            begin, found, names = headers[0] + 1, headers[0], names[1:]
            end = next((n for n in range(begin, end) if TABLE.match(lines[n])), end)
    for name in names:
        pattern = re.compile(rf"(?:^|[\s{{,.\"'\[]){re.escape(name)}[\"']?\s*(?:=|\.|\]\]?\s*$)")
        at = next((n for n in range(max(begin, found or 0), end) if pattern.search(lines[n])), None)
        if at is None:
            break
        found = at
    return None if found is None else found + 1


def _entry(lines: Sequence[str], name: str, number: int) -> tuple[int, int]:
    """Return the lines of an entry of a list of tables; -1, -1 when it is not written so."""
    starts = [n for n, line in enumerate(lines) if (match := TABLE.match(line)) and match[1] and match[2] == name]
    if number >= len(starts):
        return -1, -1
    later = [
        n
        for n in range(starts[number] + 1, len(lines))
        if (match := TABLE.match(lines[n])) and not match[2].startswith(f"{name}.")
    ]
    return starts[number], later[0] if later else len(lines)
