"""The commands speak plain English: none of the phrases that readers stumble over is in a help text or a message."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from support.paths import ROOT

STUMBLES = (
    "from when on",
    "give .* up",
    "given up",
    "go(?:es)? on(?!\\w)",
    "had their way",
    "(?<!there )(?:is|are) no (?!longer)",
    "made anew",
    "no terminal",
    "out of use",
    "puts? .* out",
    "read anew",
    "stands (?:in|still)",
    "where the output",
    "without a word",
)
FILES = [
    *sorted((ROOT / "headwater/commands").glob("*.py")),
    *(ROOT / f"headwater/{name}.py" for name in ("cli", "console", "groups")),
]


def said(file: str) -> Iterator[str]:
    """What a module says: its strings, docstrings too, since those of commands are their help."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("file", [str(file.relative_to(ROOT)) for file in FILES])
def test_a_command_says_nothing_that_readers_stumble_over(file: str) -> None:
    found = {(word, text) for text in said(file) for word in STUMBLES if re.search(rf"(?<!\w){word}", text)}
    assert found == set()


@pytest.mark.parametrize("file", [str(file.relative_to(ROOT)) for file in FILES])
def test_a_letter_is_called_a_dead_letter(file: str) -> None:
    texts = [text for text in said(file) if re.search(r"(?<!dead )(?<!dead-)\bletters?\b(?!-)", text, re.IGNORECASE)]
    assert texts == []
