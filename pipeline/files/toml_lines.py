"""Where in a TOML file a setting is, for messages: `tomllib` does not say."""

from __future__ import annotations

import re
from collections.abc import Sequence

Path = tuple[str | int, ...]
"""Names, and numbers in lists: ("flows", 1, "to", 0, "where")."""
BLANK = re.compile(r"(?:[\s,]|#[^\n]*)*")
TEXT = r'"""(?:\\.|[^\\])*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:\\.|[^"\\\n])*"|' r"'[^'\n]*'"
KEY = re.compile(rf"\s*({TEXT}|[A-Za-z0-9_-]+)\s*(\.?)", re.DOTALL)
SCALAR = re.compile(rf"{TEXT}|[^,\]}}\n#]*", re.DOTALL)


def line_of_key(text: str, path: Sequence[str | int]) -> int | None:
    """Return the line, from 1 on, of the setting at a path such as ("flows", 1, "to", 0, "where"); None: it is not found.

    As near as possible: names that are not there are passed over, of an entry of a list that is not there it is the list.
    """
    lines = _Reader(text).lines
    found: Path = ()
    for part in path:
        if (*found, part) in lines:
            found = (*found, part)
        elif isinstance(part, int):
            break
    whole = len(path) > 1 and isinstance(path[1], int) and len(found) < 2
    return None if whole else lines.get(found)


class _Reader:
    """Reads TOML that is known to be valid, for the places of its keys and of the entries of its lists."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text, self._at = text, 0
        self._last: dict[Path, int] = {}
        """The number of the last table in each list of tables."""
        table: Path = ()
        while self._skip():
            if self._take("[["):
                *outer, name = self._keys()
                listed = (*self._within(outer), name)
                self._last[listed] = self._last.get(listed, -1) + 1
                table = (*listed, self._last[listed])
                self._note(table)
                self._take("]]")
            elif self._take("["):
                table = self._within(self._keys())
                self._note(table)
                self._take("]")
            else:
                self._pair(table)

    def _pair(self, table: Path) -> None:
        path = (*table, *self._keys())
        self._note(path)
        self._take("=")
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip()
        if self._take("["):
            number = 0
            while self._skip() and not self._take("]"):
                self._note((*path, number))
                self._value((*path, number))
                number += 1
        elif self._take("{"):
            while self._skip() and not self._take("}"):
                self._pair(path)
        else:
            self._match(SCALAR)

    def _keys(self) -> list[str]:
        names = []
        dot = "."
        while dot:
            found = self._match(KEY)
            names.append(found[1][1:-1] if found[1][0] in "\"'" else found[1])
            dot = found[2]
        return names

    def _within(self, names: Sequence[str]) -> Path:
        """Return the path of a table's header: it continues the last table of each list."""
        path: Path = ()
        for name in names:
            path = (*path, name)
            if path in self._last:
                path = (*path, self._last[path])
        return path

    def _note(self, path: Path) -> None:
        line = self._text.count("\n", 0, self._at) + 1
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def _skip(self) -> bool:
        """Pass over blanks, commas and comments; return whether anything is left."""
        self._match(BLANK)
        return self._at < len(self._text)

    def _take(self, what: str) -> bool:
        found = self._text.startswith(what, self._at)
        self._at += len(what) if found else 0
        return found

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError(f"not TOML at character {self._at}")
        self._at = found.end()
        return found
