"""Patterns as in EventBridge and Lambda event filtering, compiled to closures. Pure.

A pattern has the structure of what it matches: objects, and at their leaves lists of which one entry must match. An entry is
a value, or an object with one operator. What each means is AWS's: EventBridge user guide, "Comparison operators for use in
event patterns". An array matches when one of its elements does; all fields of an object must match within one element, and
a field is absent from an array when no element that could be meant has it.

What goes beyond: with `dynamodb`, a leaf named N takes numbers although DynamoDB writes them as text, and `numeric` compares
any number, with all its digits. AWS compares none beyond 5e9: a flow would silently lose those changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from ipaddress import ip_address, ip_network
from typing import Any

from pipeline.steps.project import Number

Predicate = Callable[[Any], bool]
"""Takes what was decoded from JSON, says whether it matches."""
Scalar = Callable[[Any], bool]
"""Takes a string, a number, true, false or null."""
Read = Callable[[Any], int | Decimal | None]
"""Returns the number that a value is to `numeric`, None when it is none."""
Test = Callable[[Any], int]
"""Takes what is at a place, MISSING when nothing does; says NO, YES or ABSENT."""

NO, YES, ABSENT = 0, 1, 2
"""ABSENT: it matches, and only by what is not there. In an array that takes all elements, not one."""
MISSING: Any = object()
SCALARS = frozenset({str, int, Number, bool, type(None)})
"""What JSON has at its leaves."""
LOWER, UPPER = {">", ">="}, {"<", "<="}
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
LARGEST = 5_000_000_000
"""Of the numbers that AWS compares."""


class PatternError(ValueError):
    """The pattern cannot be compiled; says where and what was expected."""


def compile_pattern(pattern: Any, *, dynamodb: bool = False) -> Predicate:
    """Compile a pattern; raise PatternError that names the place.

    >>> paid = compile_pattern({"dynamodb": {"NewImage": {"status": {"S": ["paid", {"prefix": "part"}]}}}})
    >>> paid({"dynamodb": {"NewImage": {"status": {"S": "paid"}}}})
    True
    >>> paid({"dynamodb": {}})
    False
    """
    if not isinstance(pattern, Mapping):
        raise PatternError(f"expected an object, got {_shown(pattern)}")
    test = _object(pattern, "", dynamodb)
    return lambda event: test(event) != NO


def fields(pattern: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names that a pattern looks at: nested dicts, and True where a whole value is needed."""
    found: dict[str, Any] = {}
    for name, rest in pattern.items():
        if name == "$or" and isinstance(rest, Sequence):
            for one in rest:
                merge_fields(found, fields(one))
        else:
            merge_fields(found, {name: fields(rest) if isinstance(rest, Mapping) else True})
    return found


def merge_fields(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add the names of another pattern."""
    for name, rest in more.items():
        before = found.get(name)
        if isinstance(before, dict) and isinstance(rest, dict):
            merge_fields(before, rest)
        else:
            found[name] = rest if before is None else True


def _object(pattern: Mapping[str, Any], path: str, dynamodb: bool) -> Test:
    if not pattern:
        raise PatternError(f"{path or 'pattern'}: is empty, expected fields")
    tests = [
        (name, _field(rest, f"{path}.{name}" if path else name, name, dynamodb))
        for name, rest in pattern.items()
        if name != "$or"
    ]
    either = _either(pattern["$or"], path, dynamodb) if "$or" in pattern else []

    def of(value: Mapping[str, Any]) -> int:
        held = ABSENT
        for name, test in tests:
            found = test(value.get(name, MISSING))
            if found == NO:
                return NO
            if found == YES:
                held = YES
        if not either:
            return held
        found = _best(one(value) for one in either)
        return held if found == ABSENT else found

    if len(tests) == 1 and not either:
        ((name, test),) = tests

        def of(value: Mapping[str, Any]) -> int:  # the common case, at half the cost
            return test(value.get(name, MISSING))

    def match(value: Any) -> int:
        if type(value) is dict:
            return of(value)
        if type(value) is list and (objects := [one for one in value if isinstance(one, dict | list)]):
            found = [match(one) for one in objects]
            return NO if NO in found and YES not in found else _best(found)
        return of({})  # there is no such object, so none of its fields

    return match


def _best(found: Iterable[int]) -> int:
    """Return YES before ABSENT before NO."""
    best = NO
    for one in found:
        if one == YES:
            return YES
        best = best or one
    return best


def _either(patterns: Any, path: str, dynamodb: bool) -> list[Test]:
    place = f"{path}.$or" if path else "$or"
    if not isinstance(patterns, list | tuple) or len(patterns) < 2:
        raise PatternError(f"{place}: expected a list of at least two patterns, got {_shown(patterns)}")
    for pattern in patterns:
        if not isinstance(pattern, Mapping):
            raise PatternError(f"{place}: expected patterns, got {_shown(pattern)}")
    return [_object(one, f"{place}.{number}", dynamodb) for number, one in enumerate(patterns)]


def _field(rest: Any, path: str, name: str, dynamodb: bool) -> Test:
    if isinstance(rest, Mapping):
        return _object(rest, path, dynamodb)
    if not isinstance(rest, list | tuple) or not rest:
        raise PatternError(f"{path}: expected a list of values or nested fields, got {_shown(rest)}")
    return _leaf(rest, path, _limited if not dynamodb else _textual if name == "N" else _number)


def _leaf(entries: Sequence[Any], path: str, read: Read) -> Test:
    exact: set[tuple[type, Any]] = set()
    tests: list[Scalar] = []
    absent = NO
    for entry in entries:
        if isinstance(entry, Mapping):
            if _operator(entry, path) == ("exists", False):
                absent = ABSENT
            else:
                tests.append(_test(*_operator(entry, path), path, read))
        elif read is _textual and _is_number(entry):
            tests.append(_numeric(["=", entry], path, read))
        else:
            exact.add(_identity(entry, path))

    def match(value: Any) -> int:
        kind = type(value)
        if kind in SCALARS:
            return (kind, value) in exact or (bool(tests) and any(test(value) for test in tests))
        found = list(_scalars(value))
        return any(match(one) for one in found) if found else absent

    return match


def _scalars(value: Any) -> Iterator[Any]:
    """Yield the values at a leaf: those of an array each; an object is not a leaf."""
    if isinstance(value, list):
        for one in value:
            yield from _scalars(one)
    elif isinstance(value, float):
        yield Number(repr(value))
    elif type(value) in SCALARS:
        yield value


def _identity(value: Any, path: str) -> tuple[type, Any]:
    """Return what makes a value itself: 1 is not true, and 300.0 not 3.0e2, since AWS compares how numbers are written."""
    if not isinstance(value, str | int | float | None):
        raise PatternError(f"{path}: expected a string, number, true, false, null or an operator, got {_shown(value)}")
    (scalar,) = _scalars(value)
    return type(scalar), scalar


# -- numbers ----------------------------------------------------------------------------------------------------------


def _number(value: Any) -> int | Decimal | None:
    """Read a number of JSON, with all its digits."""
    if type(value) is int:
        return value
    return _decimal(value) if type(value) is Number else None


def _limited(value: Any) -> int | Decimal | None:
    """Read a number of JSON as AWS does: beyond its limits there is none."""
    number = _number(value)
    return number if number is not None and -LARGEST <= number <= LARGEST else None


def _textual(value: Any) -> int | Decimal | None:
    """Read a number of JSON, or one in text, as under N."""
    return _decimal(value) if type(value) is str else _number(value)


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Number) and not isinstance(value, bool)


# -- operators --------------------------------------------------------------------------------------------------------


def _operator(entry: Mapping[str, Any], path: str) -> tuple[str, Any]:
    if len(entry) != 1:
        raise PatternError(f"{path}: expected an object with one operator, got {_shown(dict(entry))}")
    ((name, argument),) = entry.items()
    if name not in {*TEXT, "exists", "numeric", "cidr", "anything-but"}:
        known = ", ".join([*TEXT, "anything-but", "numeric", "cidr", "exists"])
        raise PatternError(f"{path}: there is no operator {name!r}, expected one of {known}")
    if name == "exists" and not isinstance(argument, bool):
        raise PatternError(f"{path}: exists: expected true or false, got {_shown(argument)}")
    return name, argument


def _test(name: str, argument: Any, path: str, read: Read) -> Scalar:
    place = f"{path}: {name}"
    if name == "exists":
        return lambda value: True
    if name == "numeric":
        return _numeric(argument, place, read)
    if name == "cidr":
        return _cidr(argument, place)
    if name == "anything-but":
        return _anything_but(argument, place, read)
    return _text(name, argument, place)


def _text(name: str, argument: Any, place: str) -> Scalar:
    if isinstance(argument, Mapping) and name in {"prefix", "suffix"} and list(argument) == ["equals-ignore-case"]:
        inner = _text_argument(argument["equals-ignore-case"], place).casefold()
        test = TEXT[name](inner)
        return lambda value: type(value) is str and test(value.casefold())
    try:
        test = TEXT[name](_text_argument(argument, place))
    except _WildcardError as error:
        raise PatternError(f"{place}: {error}") from error
    return lambda value: type(value) is str and test(value)


def _text_argument(argument: Any, place: str) -> str:
    if type(argument) is not str:
        raise PatternError(f"{place}: expected a string, got {_shown(argument)}")
    return argument


def _equals_ignore_case(wanted: str) -> Callable[[str], bool]:
    folded = wanted.casefold()
    return lambda value: value.casefold() == folded


class _WildcardError(ValueError):
    """It is none; the place is to be added."""


def _wildcard(wanted: str) -> Callable[[str], bool]:
    r"""Return a test of `*` for any characters; `\*` and `\\` are themselves. Its time grows with the text alone."""
    parts = re.findall(r"\\[*\\]|\*+|[^*\\]+|\\", wanted)
    if any(part == "\\" or part.startswith("**") for part in parts):
        raise _WildcardError(f"{wanted!r}: expected single * and \\* or \\\\ for the characters themselves")
    pieces = [""]
    for part in parts:
        if part == "*":
            pieces.append("")
        else:
            pieces[-1] += part.removeprefix("\\")
    first, *middle = pieces
    if not middle:
        return lambda value: value == first
    last = middle.pop()

    def match(value: str) -> bool:
        at, end = len(first), len(value) - len(last)
        if at > end or not value.startswith(first) or not value.endswith(last):
            return False
        for piece in middle:  # where a piece is found first, most is left for those behind it
            if (found := value.find(piece, at, end)) < 0:
                return False
            at = found + len(piece)
        return True

    return match


TEXT: dict[str, Callable[[str], Callable[[str], bool]]] = {
    "prefix": lambda wanted: lambda value: value.startswith(wanted),
    "suffix": lambda wanted: lambda value: value.endswith(wanted),
    "equals-ignore-case": _equals_ignore_case,
    "wildcard": _wildcard,
}


def _numeric(argument: Any, place: str, read: Read) -> Scalar:
    if not isinstance(argument, list | tuple) or len(argument) not in {2, 4}:
        raise PatternError(f'{place}: expected [">", 0] or [">", 0, "<=", 5], got {_shown(argument)}')
    tests: list[tuple[Callable[[Any, Any], bool], int | Decimal]] = []
    for comparison, written in zip(argument[::2], argument[1::2], strict=True):
        bound = read(_identity(written, place)[1]) if _is_number(written) else None
        if comparison not in COMPARISONS or bound is None:
            limits = f" up to {LARGEST:,}" if read is _limited else ""
            raise PatternError(
                f"{place}: expected one of {', '.join(COMPARISONS)} and a number{limits}, "
                f"got {_shown(comparison)} and {_shown(written)}"
            )
        tests.append((COMPARISONS[comparison], bound))
    if len(tests) == 2 and not (argument[0] in LOWER and argument[2] in UPPER and tests[0][1] < tests[1][1]):
        raise PatternError(
            f'{place}: expected a range, the lower bound first: [">", 0, "<=", 5], got {_shown(argument)}'
        )

    def match(value: Any) -> bool:
        number = read(value)
        return number is not None and all(compare(number, bound) for compare, bound in tests)

    return match


def _cidr(argument: Any, place: str) -> Scalar:
    block = _text_argument(argument, place)
    if "/" not in block:
        raise PatternError(f"{place}: expected a block of addresses such as 10.0.0.0/24, got {_shown(argument)}")
    try:
        network = ip_network(block, strict=False)
    except ValueError as error:
        raise PatternError(f"{place}: expected a block of addresses such as 10.0.0.0/24: {error}") from error

    def match(value: Any) -> bool:
        try:
            return type(value) is str and ip_address(value) in network
        except ValueError:
            return False

    return match


def _anything_but(argument: Any, place: str, read: Read) -> Scalar:
    if isinstance(argument, Mapping):
        name, inner = _operator(argument, place)
        if name not in TEXT:
            raise PatternError(f"{place}: expected one of {', '.join(TEXT)}, got {name}")
        listed = inner if isinstance(inner, list | tuple) else [inner]
        if not listed or (name in {"prefix", "suffix"} and "" in listed):
            raise PatternError(f"{place}: {name}: expected text that is not empty, got {_shown(inner)}")
        tests = [_text(name, one, f"{place}: {name}") for one in listed]
        return lambda value: not any(test(value) for test in tests)
    wanted = argument if isinstance(argument, list | tuple) else [argument]
    if not wanted or not (all(map(_is_number, wanted)) or all(type(one) is str for one in wanted)):
        raise PatternError(f"{place}: expected only strings or only numbers, got {_shown(argument)}")
    excluded = _leaf(wanted, place, read)
    return lambda value: not excluded(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
