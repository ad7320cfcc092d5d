"""The words that readers stumble over: none is left, and docs/words.py finds one wherever it is."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "words.py"))


def found(words: str) -> list[str]:
    return [line.split(": better ")[0] for line in SCRIPT["odd"](SCRIPT["Text"]("a.md", 3, words))]


def test_no_page_string_or_comment_has_an_odd_word(capsys: pytest.CaptureFixture[str]) -> None:
    code = SCRIPT["main"]()
    assert (code, capsys.readouterr().out) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("The flow stands.", ["a.md:3: stands"]),
        ("A worker that\n    waits for\n    ever", ["a.md:4: for ever"]),
        ("It is no path", ["a.md:3: is no"]),
        ("dead letters, a dead\n    letter, letters", ["a.md:4: letters"]),
    ],
)
def test_an_odd_word_is_found_with_its_line(words: str, said: list[str]) -> None:
    assert found(words) == said


@pytest.mark.parametrize(
    "words", ["There is no path", "`standing` is an attribute", "A standby, a stand-in", "letters, digits"]
)
def test_usual_words_are_left_alone(words: str) -> None:
    assert found(words) == []


def test_comments_that_follow_one_another_are_read_as_one() -> None:
    code = "a = 1\n# it waits for\n# ever\nb = 2\nc = 3  # here\n"
    assert [(text.line, text.words) for text in SCRIPT["comments"]("a.py", code)][1:] == [
        (2, "it waits for\never"),
        (5, "here"),
    ]
