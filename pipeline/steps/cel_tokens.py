"""The tokens of an expression in CEL, and what is known from them alone. Pure.

CEL's own parser (the binding's) says what an expression means, but gives no tree. What makes an expression faster is read from
its tokens: what `&&` joins, and which attributes are read. Tokens are those of the language definition, "Lexis": comments and
strings of all kinds are one each, so nothing within them is taken for code. In doubt they say nothing, and the whole is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_RAW = r"(?:[rR][bB]?|[bB][rR])"
_STRINGS = "|".join(
    (
        rf"{_RAW}\"\"\".*?\"\"\"|{_RAW}'''.*?'''",
        rf"{_RAW}\"[^\"\r\n]*\"|{_RAW}'[^'\r\n]*'",
        r"[bB]?\"\"\"(?:\\.|[^\\])*?\"\"\"|[bB]?'''(?:\\.|[^\\])*?'''",
        r"[bB]?\"(?:\\.|[^\\\"\r\n])*\"|[bB]?'(?:\\.|[^\\'\r\n])*'",
    )
)
LEXIS = re.compile(
    rf"(?P<blank>[\t\n\f\r ]+|//[^\n]*)|(?P<string>{_STRINGS})|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<number>0x[0-9A-Fa-f]+[uU]?|(?:[0-9]*\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?[uU]?)"
    r"|(?P<sign>&&|\|\||[=!<>]=|[-+*/%!<>?:.,()\[\]{}])",
    re.DOTALL,
)
PLAIN_STRING = re.compile(r"\"[^\"\\]*\"|'[^'\\]*'").fullmatch
"""Matches a string that stands for what is between its quotes, as it is written."""
MACROS = frozenset({"all", "exists", "exists_one", "existsOne", "map", "filter"})
"""Those that give a name to the elements of a list, or the keys of a map."""
WORDS = frozenset({"true", "false", "null", "in"})
"""What looks like a name and is none."""
OPEN, CLOSE = frozenset("([{"), frozenset(")]}")


class Token(NamedTuple):
    """A token, and where it is."""

    kind: str
    """string, name, number or sign."""
    text: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    """Return the tokens of an expression, without blanks and comments; raise ValueError at what is none."""
    found, at = [], 0
    while at < len(text):
        match = LEXIS.match(text, at)
        if match is None:
            raise ValueError(f"{text[at : at + 10]!r} is not a token")
        if match.lastgroup != "blank":
            found.append(Token(str(match.lastgroup), match[0], at, match.end()))
        at = match.end()
    return found


def conjuncts(found: Sequence[Token]) -> list[Sequence[Token]]:
    """Return what `&&` joins at the top of an expression, in order; the whole as one where anything else does."""
    parts, depth, begin = [], 0, 0
    for number, token in enumerate(found):
        if token.kind != "sign":
            continue
        if token.text in OPEN:
            depth += 1
        elif token.text in CLOSE:
            depth -= 1
        elif depth == 0 and token.text in {"?", "||"}:
            return [found]
        elif depth == 0 and token.text == "&&":
            parts.append(found[begin:number])
            begin = number + 1
    return [*parts, found[begin:]]


def written(found: Sequence[Token]) -> str:
    """Return tokens as text again."""
    return " ".join(token.text for token in found)


def attributes_in(found: Sequence[Token], image: str) -> set[str] | None:
    """Return the attributes of an image that an expression reads, by name; None when it may read others, too.

    >>> sorted(attributes(tokens("after.total > 5 && has(after.place.city)"), "after"))
    ['place', 'total']
    >>> attributes(tokens('after.exists(name, name == "status")'), "after")
    """
    read: set[str] = set()
    for number, token in enumerate(found):
        if token.text != image or token.kind != "name" or _is_member(found, number):
            continue
        dot, name, behind = (_text(found, number + n) for n in (1, 2, 3))
        if dot != "." or behind == "(" or found[number + 2].kind != "name":
            return None
        read.add(name)
    return read


def free_names(found: Sequence[Token]) -> set[str]:
    """Return the names that stand for something from outside, not for what a macro is at."""
    bound = list(_bound(found))
    free = set()
    for number, token in enumerate(found):
        if token.kind != "name" or token.text in WORDS or _is_member(found, number) or _text(found, number + 1) == "(":
            continue
        if not any(token.text == name and begin < number < end for name, begin, end in bound):
            free.add(token.text)
    return free


def _bound(found: Sequence[Token]) -> Iterator[tuple[str, int, int]]:
    """Yield the names that macros give, and from where to where they hold."""
    for number, token in enumerate(found):
        opens = token.text in MACROS and _is_member(found, number) and _text(found, number + 1) == "("
        if opens and _text(found, number + 3) == ",":
            yield found[number + 2].text, number + 1, _closing(found, number + 1)


def _closing(found: Sequence[Token], opening: int) -> int:
    depth = 0
    for number in range(opening, len(found)):
        if found[number].kind == "sign":
            depth += (found[number].text in OPEN) - (found[number].text in CLOSE)
        if depth == 0:
            return number
    return len(found)


def _is_member(found: Sequence[Token], number: int) -> bool:
    """Say whether a name is that of a member or a method; `.after` at the beginning of an operand is a name from outside."""
    if number < 2 or found[number - 1].text != ".":
        return False
    before = found[number - 2]
    if before.kind == "sign":
        return before.text in CLOSE
    return before.text != "in"


def _text(found: Sequence[Token], number: int) -> str:
    return found[number].text if number < len(found) else ""
