"""`headwater flows match`: the lines of JSON that a pattern matches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.errors import UsageError
from pipeline.steps.filter import PatternError, compile_pattern, fields
from pipeline.steps.project import Number, projection


@dataclass(slots=True)
class Tally:
    """What came of the lines."""

    lines: int = 0
    matched: int = 0
    unreadable: int = 0
    first_unreadable: str = ""
    """Which line it was, and why; ''."""


class Matcher:
    """A pattern as EventBridge has it; raises UsageError when the file holds none."""

    def __init__(self, file: Path) -> None:
        try:
            pattern = json.loads(file.read_bytes(), parse_float=Number)
            self._match = compile_pattern(pattern)
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}", hint=f"ls {file.parent}") from error
        except PatternError as error:
            raise UsageError(f"{file}: {error}", hint="docs/how-to/filter-changes.md, patterns") from error
        except ValueError as error:
            raise UsageError(f"{file}: not JSON: {error}", hint=f"python3 -m json.tool {file}") from error
        self._look = projection(fields(pattern))

    def of(self, lines: Iterable[bytes], tally: Tally) -> Iterator[bytes]:
        """Yield the lines that match, as they came. Empty lines are skipped; what is not JSON is counted."""
        look, match = self._look, self._match
        for number, line in enumerate(lines, 1):
            tally.lines += 1
            try:
                found = match(look(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if line.isspace():
                    tally.lines -= 1
                    continue
                tally.unreadable += 1
                tally.first_unreadable = tally.first_unreadable or f"line {number}: {error}"
                continue
            if found:
                tally.matched += 1
                yield line
