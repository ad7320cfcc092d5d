"""Find words that readers stumble over, and say what to write instead: python docs/words.py.

Looks into README.md, CONTRIBUTING.md, the newest section of CHANGELOG.md, docs (without docs/decisions), and the strings and
comments of agents, headwater, models and pipeline. Prints file:line, the word, a better one; exits 1 when there is any.
"""  # noqa: INP001 - a script

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCES = ("agents", "headwater", "models", "pipeline")

WORDS = {
    r"(a|the) version before": "an earlier version",
    r"anew": "again; recreated",
    r"all the same": "anyway",
    r"daily bread": "routine",
    r"comes? of itself": "happens by itself",
    r"counts? no more": "is no longer counted",
    r"for ever": "forever",
    r"for good": "permanently",
    r"from when on": "--from is required",
    r"(go|goes|going|gone|went) on": "continue; pass; happen",
    r"(had|have|has) their way": "have processed it",
    r"(has|have|had) not(?=[.,;:)]| the | a )": "does not have",
    r"(held|hold|holds|holding)( \S+){0,8} against": "compare with",
    r"(?<!there\s)(?<!where\s)(is|are|was|were) no (?!longer|more|other|different|later|less|way|such)": "is not a; unknown",
    r"(?<!dead\s)(?<!dead-)letters?(?!, digits)": "dead letter",
    r"in clear": "in plain text",
    r"in silence": "silently",
    r"lest|thereof|wherefore|whence|hither|naught|nought": "(a usual word)",
    r"made again": "recreated",
    r"no terminal": "not a terminal",
    r"out of use": "no longer used",
    r"mend(s|ed|ing)?": "fix; correct; repair",
    r"no more(?=[.,;:)])": "no longer",
    r"nothing had been": "normally",
    r"over there": "there; on the other cluster",
    r"purses?": "credit pool",
    r"puts? each other out": "evict each other",
    r"shall": "must; should; will",
    r"shar(e|es|ed|ing)( \S+)? out": "assign",
    r"so long a": "for that long",
    r"stand(s|ing)? still|stood still": "is idle; is stuck",
    r"(stands?|stood)(?!-| for| still)": "is; is in; is defined; is paused",
    r"standing(?! still)": "paused; stuck",
    r"(can|cannot|could not) be told(?! apart)": "is known; is reported",
    r"where the output": "when the output",
    r"what becomes of": "what happens to",
    r"without a word": "silently",
}
"""Regular expressions, of whole words and in any case; and what to say instead."""


class Text(NamedTuple):
    """A text that somebody reads."""

    file: str
    line: int
    words: str


def pages() -> Iterator[Text]:
    """Yield the pages. Code, and where links lead to, is blanked: names are no words."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
    for path in paths:
        if path.parent.name == "decisions":
            continue
        text = path.read_text(encoding="utf-8")
        if path.name == "CHANGELOG.md":
            text = newest(text)
        yield Text(str(path.relative_to(ROOT)), 1, re.sub(r"\]\([^)]*\)", _blanked, text))


def newest(changes: str) -> str:
    """Return a changelog down to the end of its first section."""
    sections = [match.start() for match in re.finditer(r"^## ", changes, re.MULTILINE)]
    return changes[: sections[1]] if len(sections) > 1 else changes


def sources() -> Iterator[Text]:
    """Yield the strings and comments of the code."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            code, file = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield Text(file, node.lineno, node.value)
            yield from comments(file, code)


def comments(file: str, code: str) -> Iterator[Text]:
    """Yield the comments of a source; those of lines that follow one another are one text."""
    first, lines = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != first + len(lines):
            yield Text(file, first, "\n".join(lines))
            first, lines = token.start[0], []
        lines.append(token.string.lstrip("# "))
    yield Text(file, first, "\n".join(lines))


def _blanked(match: re.Match[str]) -> str:
    return re.sub(r"\S", " ", match[0])


def odd(text: Text) -> Iterator[str]:
    """Yield a line for each odd word of a text."""
    words = re.sub(r"\n[ \t]+", "\n", re.sub(r"`[^`\s]+`", _blanked, text.words))
    for pattern, better in WORDS.items():
        spaced = pattern.replace(" ", r"\s+")
        for match in re.finditer(rf"\b(?:{spaced})\b", words, re.IGNORECASE):
            line = text.line + words.count("\n", 0, match.start())
            yield f"{text.file}:{line}: {' '.join(match[0].split())}: better {better}"


def main() -> int:
    """Print what is odd; return 1 if anything is."""
    found = [line for text in (*pages(), *sources()) for line in odd(text)]
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
