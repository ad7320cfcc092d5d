"""Items of a form that was seen before, as plain JSON by one regular expression: 1.9 us for 12 attributes, else 4.3. Pure.

A form is the names and the type tags of an item's attributes, in their order; tables have few. What has none that is
known, or has lists, sets, or numbers in an odd spelling, is left to `plain_item`, which writes the same bytes
(docs/decisions/0029).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, TypeAlias

import msgspec

Numbers = Literal["exact", "string", "shared"]
"""How numbers are written: as JSON numbers; as texts; shared: as JSON numbers where they are whole or a double has all their
digits, else as texts, for readers that make doubles of JSON's fractions."""
Shape: TypeAlias = tuple[tuple[str, str, "Shape"], ...]
"""Name, type tag, and of a map its members."""
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
"""What JSON takes as a number."""
NUMBERS: Mapping[str, bytes] = {
    "exact": b'"(%b)"' % NUMBER.encode(),
    "string": b'("%b")' % NUMBER.encode(),
    "shared": rb'"(?=[^"]{1,16}")(%b)"' % NUMBER.encode(),  # of so many characters a double has all digits
}
"""What stands for a number in the pattern of a form."""
TEXT = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
SAMPLE, WINDOW = 16, 64
"""Of the items that no known form fits each 16th is looked at; 64 of those decide which forms are known from then on."""
SHARE = 4
"""A form is known when each fourth item has it: more than three known ones would cost more than they gain."""

_decode = msgspec.json.Decoder(dict[str, dict[str, msgspec.Raw]]).decode
_encode = msgspec.json.encode


class Form:
    """A form, and how many items of it there were."""

    __slots__ = ("hits", "match", "template")

    def __init__(self, pattern: bytes, template: bytes) -> None:
        self.match: Callable[[bytes], re.Match[bytes] | None] = re.compile(pattern, re.DOTALL).fullmatch
        self.template, self.hits = template, 0


class Forms:
    """The known forms of items that begin with the same attribute. For one thread at a time, as flows run."""

    def __init__(self, numbers: Numbers) -> None:
        """Of `shared`, only items are known whose numbers all become JSON numbers for certain."""
        self._number = NUMBERS[numbers]
        self._forms: list[Form] = []
        self._missed = 0
        self._seen: Counter[Shape] = Counter()

    def write(self, image: bytes) -> bytes | None:
        """Return an item as plain JSON; None when no known form fits it."""
        for form in self._forms:
            if (found := form.match(image)) is not None:
                form.hits += 1
                return form.template % found.groups()
        self._missed += 1
        if self._missed % SAMPLE == 0:
            self._look(image)
        return None

    def _look(self, image: bytes) -> None:
        try:
            self._seen[_shape(image)] += 1
        except (msgspec.DecodeError, ValueError):  # no item, or one without a form
            self._seen[()] += 1
        if self._missed < SAMPLE * WINDOW:
            return
        kept = [
            form for form in self._forms if form.hits * SHARE >= self._missed + sum(one.hits for one in self._forms)
        ]
        new = [
            _form(shape, self._number) for shape, n in self._seen.most_common(SHARE) if shape and n * SHARE >= WINDOW
        ]
        for form in kept:
            form.hits = 0
        self._forms = (kept + [form for form in new if form not in kept])[: SHARE - 1]
        self._missed = 0
        self._seen.clear()


def _shape(image: bytes | msgspec.Raw) -> Shape:
    """Return the form of an item; raise ValueError when it has none."""
    found = []
    for name, value in _decode(image).items():
        ((tag, content),) = value.items()
        found.append((name, tag, _shape(content) if tag == "M" else ()))
        if tag not in TAGS:
            raise ValueError(tag)
    return tuple(found)


TAGS = {"S", "N", "B", "BOOL", "NULL", "M"}


@lru_cache(maxsize=1_024)
def _form(shape: Shape, number: bytes) -> Form:
    return Form(*_members(shape, number))


def _members(shape: Shape, number: bytes) -> tuple[bytes, bytes]:
    """Return the pattern of a map's members, and the template of what they become."""
    values: Mapping[str, tuple[bytes, bytes]] = {
        "S": (b"(%b)" % TEXT, b"%b"),
        "B": (b"(%b)" % TEXT, b"%b"),
        "N": (number, b"%b"),
        "BOOL": (b"(true|false)", b"%b"),
        "NULL": (b"true", b"null"),
    }
    patterns, templates = [], []
    for name, tag, members in shape:
        pattern, template = _members(members, number) if tag == "M" else values[tag]
        written = _encode(name)
        patterns.append(rb'%b:\{"%b":%b\}' % (re.escape(written), tag.encode(), pattern))
        templates.append(b"%b:%b" % (written.replace(b"%", b"%%"), template))
    return rb"\{%b\}" % b",".join(patterns), b"{%b}" % b",".join(templates)
