"""Conditions in CEL (the Common Expression Language) over a change. Pure.

The binding is behind `compile_expression` and `compile_value`.

What an expression can name: `op` (c, u, d, r), `table`, `key`, `before`, `after` (the item, as plain values, or null),
`changed("attribute")`, `ttl_expired`; behind the enrichment also `enriched`, what it has added. Only what it names is
decoded. Numbers of DynamoDB are CEL's integers where they are whole and fit in 64 bits, else its doubles; of those that neither
holds exactly see `_with_long_numbers`.

What is fast here (one clause is asked before the others, one attribute read without its item) gives what CEL gives of the whole
expression: of `&&` one false clause decides, whatever the others are, errors among them (language definition, "Logical
operators").
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from difflib import get_close_matches
from functools import partial
from itertools import pairwise, product
from math import inf, nextafter
from operator import attrgetter
from typing import Any, TypeAlias

import cel
import msgspec

from models.attribute_path import find, parse
from models.attributes import digits, normal
from models.change import Change
from pipeline.steps.cel_tokens import PLAIN_STRING, Token, attributes_in, conjuncts, free_names, tokens, written
from pipeline.steps.project import projection

logging.getLogger("cel").setLevel(logging.CRITICAL)  # what it logs is the reason of a dead letter, too

NAMES = ("op", "table", "key", "before", "after", "ttl_expired")
ENRICHED = "enriched"
FUNCTIONS = frozenset(
    {
        *("size", "contains", "startsWith", "endsWith", "matches"),
        *("int", "uint", "double", "string", "bytes", "timestamp", "duration", "type", "dyn"),
        *("getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"),
        *("getHours", "getMinutes", "getSeconds", "getMilliseconds"),
        "changed",
    }
)
"""Those that there are, beside the macros has, all, exists, exists_one, map, filter: docs/how-to/filter-changes.md."""
TYPES = frozenset({"int", "uint", "double", "string", "bytes", "bool", "list", "map", "null_type", "type"})
"""What `type(x)` is compared with."""
EQUALITY = frozenset({"_==_", "_!=_", "@in", "_&&_", "_||_", "!_", "_?_:_", "_[_]", "@not_strictly_false", "changed"})
"""What is done with numbers in an expression that does nothing with them but compare them for equality."""
SIZE = "headwater_size"
"""What `size` is called for the binding, which counts the bytes of a string, not its characters as CEL does."""
Condition = Callable[[bytes, Change], bool]
"""Takes a change's bytes and the change; raises ExpressionError when there is no answer."""
Number: TypeAlias = Callable[[str], Any]
"""Takes a number of DynamoDB, gives what CEL is given for it."""
Fact: TypeAlias = Callable[[bytes, Change, Number], Any]
"""Gives the value of a name: of a change's bytes, the change."""
Evaluate = Callable[[bytes, Change, Mapping[str, msgspec.Raw]], Any]
"""Takes a change's bytes, the change and what was added to it; raises ExpressionError when there is no value."""


class ExpressionError(ValueError):
    """An expression that cannot be compiled, or has no answer for a change; says which, and why."""


def compile_expression(text: str) -> Condition:
    """Compile a condition over a change; raise ExpressionError that says what is wrong.

    >>> big = compile_expression('table == "orders" && op != "d" && after.total > 100')
    """
    evaluate = compile_value(text, NAMES)
    parts = conjuncts(tokens(text))
    tests = [_fact_test(part) for part in parts]
    facts = [test for test in tests if test is not None]
    dear = [part for part, test in zip(parts, tests, strict=True) if test is None]
    rules = [rule for part in dear if (rule := _equality(part)) is not None]
    rest = compile_value(" && ".join(map(written, dear)), NAMES, text) if facts and dear else evaluate

    def condition(value: bytes, change: Change) -> bool:
        # false && anything is false in CEL, an error as well: what needs no image, or little of one, is asked first.
        for fact in facts:
            if not fact(change):
                return False
        if not dear:
            return True
        for differs in rules:
            if differs(change):
                return False
        return truth(text, rest(value, change, {}))

    return condition


def clauses(text: str) -> list[str]:
    """Return what an expression joins by `&&` at its top; one is the whole."""
    return [text[part[0].start : part[-1].end] for part in conjuncts(tokens(text))]


def _fact_test(part: Sequence[Token]) -> Callable[[Change], bool] | None:
    """Return what tells a comparison of `op` or `table` with constants, without CEL: they are text, and always there."""
    texts = [token.text for token in part]
    if len(texts) < 3 or texts[0] not in {"op", "table"}:
        return None
    if texts[1] in {"==", "!="} and len(texts) == 3:
        listed = texts[2:]
    elif texts[1:3] == ["in", "["] and texts[-1] == "]" and set(texts[4:-1:2]) <= {","}:
        listed = texts[3:-1:2]
    else:
        return None
    if not listed or not all(map(PLAIN_STRING, listed)):
        return None
    constants, wanted = frozenset(name[1:-1] for name in listed), texts[1] != "!="
    if texts[0] == "op":
        return lambda change: (change.op in constants) is wanted
    return lambda change: (change.table in constants) is wanted


def _equality(part: Sequence[Token]) -> Callable[[Change], bool] | None:
    """Return what tells that `after.name == "text"` does not hold, as there is other text; None: it is no such part."""
    texts = [token.text for token in part]
    if len(texts) != 5 or texts[0] not in IMAGES or texts[1] != "." or texts[3] != "==" or not PLAIN_STRING(texts[4]):
        return None
    name, text = texts[2], texts[4][1:-1]
    image = IMAGES[texts[0]]
    one = msgspec.defstruct("One", [("value", Text, msgspec.field(name=name, default=NO_TEXT))])
    look = msgspec.json.Decoder(one).decode

    def differs(change: Change) -> bool:
        try:
            found = look(image(change.body)).value.text  # type: ignore[attr-defined]  # made at run time
        except msgspec.DecodeError:  # or there is no such image
            return False
        return found is not None and found != text

    return differs


IMAGES = {"after": attrgetter("new_image"), "before": attrgetter("old_image"), "key": attrgetter("keys")}


class Text(msgspec.Struct, gc=False, frozen=True):
    """An attribute value, if it is text."""

    text: str | None = msgspec.field(name="S", default=None)


NO_TEXT = Text()


def truth(text: str, answer: Any) -> bool:
    """Return the answer of a condition; raise ExpressionError when it is neither true nor false."""
    if not isinstance(answer, bool):
        raise ExpressionError(f"{text}: gave {answer!r}, expected true or false")
    return answer


def compile_value(text: str, names: Sequence[str] = (*NAMES, ENRICHED), shown: str = "") -> Evaluate:
    """Compile an expression that gives a value, and may name these; raise ExpressionError that says what is wrong.

    `shown` is what errors call it.
    """
    program, found = _compile(text)
    shown = shown or text
    named = set(program.variables())
    free = free_names(found)
    unknown = sorted(name for name in named - set(names) - TYPES if name in free or name.startswith("."))
    if unknown:
        raise ExpressionError(f"{', '.join(unknown)}: there is no such name, expected one of {', '.join(names)}")
    called = [name for name in program.functions() if name[0].isalpha()]
    if missing := sorted({SIZE: "size"}.get(name, name) for name in called if name not in {*FUNCTIONS, SIZE}):
        raise ExpressionError(f"{', '.join(missing)}: there is no such function, {_expected(missing[0])}")
    facts = {name: _fact(name, found) for name in NAMES if name in named}
    functions = {SIZE: _size} if SIZE in called else {}
    asks_changed, asks_enriched = "changed" in called, ENRICHED in named
    compares_order = not EQUALITY.issuperset(program.functions())

    def execute(value: bytes, change: Change, added: Mapping[str, msgspec.Raw], number: Number) -> Any:
        given: dict[str, Any] = {name: fact(value, change, number) for name, fact in facts.items()} | functions
        if asks_changed:
            given["changed"] = lambda attribute: _changed(change, attribute)
        if asks_enriched:
            given[ENRICHED] = {name: plain_number(_decode_value(one), number) for name, one in added.items()}
        try:
            return program.execute(given)
        except _FAILURES as error:
            raise ExpressionError(f"{shown}: {_reason(error, change, given)}") from error

    def evaluate(value: bytes, change: Change, added: Mapping[str, msgspec.Raw]) -> Any:
        try:
            return execute(value, change, added, number_of)
        except LongNumberError:
            return _with_long_numbers(shown, partial(execute, value, change, added), compares_order=compares_order)

    return evaluate


_FAILURES = (KeyError, IndexError, ValueError, TypeError, OverflowError, RuntimeError, ArithmeticError)


def _compile(text: str) -> tuple[cel.Program, list[Token]]:
    try:
        program = cel.compile(text)  # as it is written: what is wrong with it has its place
        found = tokens(text)
        own = _with_own_size(text, found)
        return program if own == text else cel.compile(own), found
    except ValueError as error:
        raise ExpressionError(_first_line(error)) from error


def _with_own_size(text: str, found: Sequence[Token]) -> str:
    """Return an expression in which `size(...)` has another name."""
    calls = [one for one, behind in pairwise(found) if one.text == "size" and one.kind == "name" and behind.text == "("]
    for token in reversed(calls):
        text = text[: token.start] + SIZE + text[token.end :]
    return text


def _size(value: Any) -> int:
    if not isinstance(value, str | bytes | list | dict):
        raise TypeError("size takes text, bytes, a list or a map")
    return len(value)


def _expected(name: str) -> str:
    near = get_close_matches(name, FUNCTIONS, 1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(FUNCTIONS))}"


# -- numbers ----------------------------------------------------------------------------------------------------------


class LongNumberError(ValueError):
    """A number that neither 64 bits of an integer nor a double hold with all its digits."""


def number_of(text: str) -> int | float:
    """Return a number of DynamoDB as CEL has it; raise LongNumberError where that were another number."""
    try:
        whole = int(text)
    except ValueError:
        near = float(text)
        if len(text) > SAFE and Decimal(repr(near)) != Decimal(text):
            raise LongNumberError(text) from None
        return near
    if -(1 << 63) <= whole < 1 << 63:
        return whole
    near = float(whole)
    if Decimal(repr(near)) != whole:
        raise LongNumberError(text)
    return near


SAFE = 16
"""Characters of a number, its point and its digits, that a double always holds."""
MOST_LONG = 6
"""Numbers of one change for which all neighbours are tried."""


def _with_long_numbers(shown: str, execute: Callable[[Number], Any], *, compares_order: bool) -> Any:
    """Return what an expression gives of a change with numbers that CEL does not have.

    Where numbers are only compared for equality, looked for or passed on, they go as text, with all their digits. Else the
    expression is asked with the doubles below and above each of them: where all give one answer it is the right one. Raise
    ExpressionError where they do not.
    """
    long: dict[str, Decimal] = {}

    def as_text(text: str) -> int | float | str:
        try:
            return number_of(text)
        except LongNumberError:
            known = f"\0{digits(text)}"
            long[known] = Decimal(text)
            return known

    if not compares_order:
        return _with_numbers(execute(as_text), long)
    with suppress(ExpressionError):
        execute(as_text)  # which numbers there are
    if len(long) > MOST_LONG:
        raise ExpressionError(f"{shown}: there are {len(long)} numbers of more digits than CEL's have: {SQL_OR_PYTHON}")
    answers: list[Any] = []
    for sides in product((0, 1), repeat=len(long)):
        chosen = {known: _neighbours(number)[side] for (known, number), side in zip(long.items(), sides, strict=True)}
        answers.append(execute(partial(_chosen, chosen)))
    if any(answer != answers[0] for answer in answers):
        numbers = ", ".join(map(str, long.values()))
        raise ExpressionError(
            f"{shown}: the answer depends on digits of {numbers} that no number of CEL's has: {SQL_OR_PYTHON}"
        )
    return answers[0]


SQL_OR_PYTHON = "use SQL or Python for it"


def _chosen(chosen: Mapping[str, float], text: str) -> int | float:
    try:
        return number_of(text)
    except LongNumberError:
        return chosen[f"\0{digits(text)}"]


def _neighbours(number: Decimal) -> tuple[float, float]:
    """Return the doubles below and above a number."""
    near = float(number)
    return (near, nextafter(near, inf)) if Decimal(near) < number else (nextafter(near, -inf), near)


def _with_numbers(answer: Any, long: Mapping[str, Decimal]) -> Any:
    """Return an answer in which the text of a long number is the number again."""
    if isinstance(answer, str):
        return long.get(answer, answer)
    if isinstance(answer, list):
        return [_with_numbers(one, long) for one in answer]
    if isinstance(answer, dict):
        return {name: _with_numbers(one, long) for name, one in answer.items()}
    return answer


# -- what is named ----------------------------------------------------------------------------------------------------


def _reason(error: Exception, change: Change, facts: Mapping[str, Any]) -> str:
    """Say why an expression has no answer. Of null CEL says no more than that types do not fit."""
    if isinstance(error, KeyError):
        return f"there is no {error}: ask has() first"
    for image in ("after", "before"):
        if image in facts and facts[image] is None:
            if image == "after" and change.op == "d":
                return "after is null, since this is a deletion: begin with op != 'd' && ..."
            return f"{image} is null here: begin with {image} != null && ..."
    return UNDEFINED.sub(r"\1 does not take such values", _first_line(error))


UNDEFINED = re.compile(r"Undefined variable or function: '(\w+)'.*")
"""What the binding says of a function that takes other types: that it exists was seen when it was compiled."""


def _fact(name: str, found: Sequence[Token]) -> Fact:
    if name in {"before", "after"}:
        decode = _image_decoder(name, found)
        return lambda value, change, number: _plain_image(getattr(change, name), decode, number)
    facts: dict[str, Fact] = {
        "op": lambda value, change, number: change.op,
        "table": lambda value, change, number: change.table,
        "key": lambda value, change, number: _plain_image(bytes(change.body.keys), _decode_item, number),
        "ttl_expired": lambda value, change, number: change.op == "d" and _decode_identity(value).by_ttl,
    }
    return facts[name]


def _image_decoder(name: str, found: Sequence[Token]) -> Callable[[bytes], Any]:
    """Return what decodes the attributes that an expression names, or the whole image where that is not known."""
    named = attributes_in(found, name)
    return _decode_item if named is None else projection(dict.fromkeys(named, True))


def _plain_image(image: bytes | None, decode: Callable[[bytes], Any], number: Number) -> dict[str, Any] | None:
    return None if image is None else {name: plain_number(value, number) for name, value in decode(image).items()}


def plain_number(value: Mapping[str, Any], number: Number = number_of) -> Any:
    """Return an attribute value as CEL has it: sets are lists, binary is bytes."""
    ((tag, inner),) = value.items()
    if tag == "N":
        return number(inner)
    if tag == "NULL":
        return None
    if tag == "B":
        return base64.b64decode(inner)
    if tag == "M":
        return {name: plain_number(one, number) for name, one in inner.items()}
    if tag == "L":
        return [plain_number(member, number) for member in inner]
    if tag == "NS":
        return [number(member) for member in inner]
    if tag == "BS":
        return [base64.b64decode(member) for member in inner]
    return inner


def _changed(change: Change, attribute: str) -> bool:
    """Say whether the value at a path is another than before; what came or went is."""
    path = parse(attribute)
    values = [find({} if image is None else _decode_item(image), path) for image in (change.before, change.after)]
    known = [None if value is None else normal(value) for value in values]
    return known[0] != known[1]


class _Identity(msgspec.Struct):
    kind: str = msgspec.field(name="type", default="")
    principal: str = msgspec.field(name="principalId", default="")


class _Deletion(msgspec.Struct):
    identity: _Identity | None = msgspec.field(name="userIdentity", default=None)

    @property
    def by_ttl(self) -> bool:
        return self.identity is not None and self.identity.principal == "dynamodb.amazonaws.com"


_decode_value = msgspec.json.Decoder(dict[str, Any]).decode
_decode_item = msgspec.json.Decoder(dict[str, dict[str, Any]]).decode
_decode_identity = msgspec.json.Decoder(_Deletion).decode


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
