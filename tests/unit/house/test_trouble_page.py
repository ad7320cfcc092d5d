"""The messages that docs/how-to/trouble.md quotes are those of the code."""

from __future__ import annotations

import ast
import errno
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/how-to/trouble.md"
FORMAT = re.compile(r"%(?:\.\d)?[sdrfg]")
HOLE = None
"""A place in a message that a value fills."""
ELSEWHERE = {
    os.strerror(errno.ENOENT),
    os.strerror(errno.ENOSPC),
    "Input should be a valid string",  # pydantic
    "Invalid value (at line 2, column 21)",  # tomllib
}
"""What fills such places and is said by others."""
Template = tuple[str | None, ...]


def tokens(node: ast.AST) -> list[str | None]:
    """A string of the code: what is written, and holes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        texts = FORMAT.split(node.value)
        return [part for text in texts for part in (HOLE, text)][1:]
    if isinstance(node, ast.JoinedStr):
        return [part for value in node.values for part in tokens(value)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return tokens(node.left) + tokens(node.right)
    return tokens(node.body) if isinstance(node, ast.IfExp) else [HOLE]


def merged(parts: Sequence[str | None]) -> Template:
    found: list[str | None] = []
    for part in parts:
        if part and found and found[-1] is not HOLE:
            found[-1] += part
        elif part or (part is HOLE and found[-1:] != [HOLE]):
            found.append(part)
    return tuple(found)


@cache
def templates() -> list[Template]:
    found = set()
    for folder in ("pipeline", "agents", "models", "headwater"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
            docs = {node.value for node in tree if isinstance(node, ast.Expr)}
            for node in tree:
                if (
                    node not in docs
                    and isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
                    and any(tokens(node))
                ):
                    found.add(merged(tokens(node)))
    return [one for one in found if re.search(r"[a-z]{3}", "".join(part or "" for part in one))]


def ways(text: str, template: Template, most: int, *, open_end: bool) -> Iterator[int]:
    """How many letters of a text the code has written, for each way a template makes it; a value has less than `most`."""
    if not template:
        if not text:
            yield 0
        return
    part, rest = template[0], template[1:]
    if part is not HOLE:
        if text.startswith(part):
            for more in ways(text[len(part) :], rest, most, open_end=open_end):
                yield len(part) + more
        elif open_end and part.startswith(text):
            yield len(text)
        return
    if not text and open_end:
        yield 0
    for end in range(min(len(text) + 1, most)):
        after, following = text[end:], rest[0] or "" if rest else ""
        goes_on = after.startswith(following) if rest else not after
        if (goes_on or (open_end and following.startswith(after))) and fills(
            text[:end], open_end=open_end and not after
        ):
            said = end if " " in text[:end] else 0
            for more in ways(after, rest, most, open_end=open_end):
                yield said + more


@cache
def fills(value: str, *, open_end: bool) -> bool:
    """Whether a hole can hold this: a value of one word, or what another string of the code says in full."""
    if " " not in value or value in ELSEWHERE:
        return True
    return any(made(value, template, open_start=False, open_end=open_end) for template in templates())


def made(text: str, template: Template, *, open_start: bool, open_end: bool) -> bool:
    """Whether a string of the code makes this text, or a part that holds it, and most of it is written there."""
    if not any(part and (part in text or text in part or part[:8] in text or part[-8:] in text) for part in template):
        return False
    least, most = 0.3 * len(text), len(text)
    if any(written >= least for written in ways(text, template, most, open_end=open_end)):
        return True
    if not open_start:
        return False
    for at, part in enumerate(template):
        for begin in range(len(part or "")):
            cut = (part or "")[begin:]
            begins = text.startswith(cut) or (open_end and cut.startswith(text))
            rest = (cut, *template[at + 1 :])
            if begins and any(written >= least for written in ways(text, rest, most, open_end=open_end)):
                return True
    return False


def quoted() -> list[str]:
    rows = [row for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| `")]
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def unknown(message: str) -> list[str]:
    """The parts of a message, between its dots, that no string of the code makes."""
    parts = [part for part in message.split("...") if re.search(r"[a-z]{2}", part) and " " in part.strip()]
    parts = [part for part in parts if part.strip() not in ELSEWHERE]
    return [
        part
        for part in parts
        if not any(made(part, template, open_start=True, open_end=True) for template in templates())
    ]


@pytest.mark.parametrize("message", [one for one in quoted() if one != "lake"])
def test_each_message_on_the_page_is_one_of_the_code(message: str) -> None:
    assert unknown(message) == []


def test_a_message_that_the_code_no_longer_has_would_be_noticed() -> None:
    assert unknown("the flow ... rejects more than 50% of its changes (reject_limit); it stands")
    assert unknown("... is sealed, and the flow ... of the settings has no mask_key")
    assert unknown("there is no agents 'ingets'")


def test_what_others_say_is_what_they_say() -> None:
    with pytest.raises(tomllib.TOMLDecodeError, match=re.escape("Invalid value (at line 2, column 21)")):
        tomllib.loads("[kafka]\nbootstrap_servers = localhost:9092")
    with pytest.raises(ValidationError, match="Input should be a valid string"):
        TypeAdapter(str).validate_python({})


def test_the_page_has_its_messages_in_tables() -> None:
    assert len(quoted()) > 70
