"""Patterns as in EventBridge and Lambda event filtering, compiled to closures. Pure.

A pattern has the structure of what it matches: objects, and at their leaves lists of which one entry must match. An entry is
a value, or an object with one operator. What each means is AWS's: EventBridge user guide, "Comparison operators for use in
event patterns". An array matches when one of its elements does; all fields of an object must match within one element.

What goes beyond: with `dynamodb`, a leaf named N takes numbers although DynamoDB writes them as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from ipaddress import ip_address, ip_network
from typing import Any

Predicate = Callable[[Any], bool]
"""Takes what was decoded from JSON, says whether it matches."""
Scalar = Callable[[Any], bool]
"""Takes a string, a number, true, false or null."""

MISSING: Any = object()
SCALARS = frozenset({str, int, float, bool, type(None)})
"""What JSON has at its leaves."""
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
    return _object(pattern, "", dynamodb)


def fields(pattern: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names that a pattern looks at: nested dicts, and True where a whole value is needed."""
    found: dict[str, Any] = {}
    for name, rest in pattern.items():
        if name == "$or" and isinstance(rest, Sequence):
            for one in rest:
                merge(found, fields(one))
        else:
            merge(found, {name: fields(rest) if isinstance(rest, Mapping) else True})
    return found


def merge(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add the names of another pattern."""
    for name, rest in more.items():
        before = found.get(name)
        if isinstance(before, dict) and isinstance(rest, dict):
            merge(before, rest)
        else:
            found[name] = rest if before is None else True


def _object(pattern: Mapping[str, Any], path: str, dynamodb: bool) -> Predicate:
    if not pattern:
        raise PatternError(f"{path or 'pattern'}: is empty, expected fields")
    tests = [
        (name, _field(rest, f"{path}.{name}" if path else name, name, dynamodb))
        for name, rest in pattern.items()
        if name != "$or"
    ]
    either = _either(pattern["$or"], path, dynamodb) if "$or" in pattern else []

    def of(value: Mapping[str, Any]) -> bool:
        for name, test in tests:
            if not test(value.get(name, MISSING)):
                return False
        return not either or any(one(value) for one in either)

    if len(tests) == 1 and not either:
        ((name, test),) = tests

        def of(value: Mapping[str, Any]) -> bool:  # the common case, at half the cost
            return test(value.get(name, MISSING))

    def match(value: Any) -> bool:
        if type(value) is dict:
            return of(value)
        if type(value) is list and (objects := [one for one in value if isinstance(one, dict | list)]):
            return any(match(one) for one in objects)
        return of({})  # there is no such object, so none of its fields

    return match


def _either(patterns: Any, path: str, dynamodb: bool) -> list[Predicate]:
    place = f"{path}.$or" if path else "$or"
    if not isinstance(patterns, list | tuple) or len(patterns) < 2:
        raise PatternError(f"{place}: expected a list of at least two patterns, got {_shown(patterns)}")
    for one in patterns:
        if not isinstance(one, Mapping):
            raise PatternError(f"{place}: expected patterns, got {_shown(one)}")
    return [_object(one, f"{place}.{number}", dynamodb) for number, one in enumerate(patterns)]


def _field(rest: Any, path: str, name: str, dynamodb: bool) -> Predicate:
    if isinstance(rest, Mapping):
        return _object(rest, path, dynamodb)
    if not isinstance(rest, list | tuple) or not rest:
        raise PatternError(f"{path}: expected a list of values or nested fields, got {_shown(rest)}")
    return _leaf(rest, path, textual_numbers=dynamodb and name == "N")


def _leaf(entries: Sequence[Any], path: str, *, textual_numbers: bool) -> Predicate:
    exact: set[tuple[type, Any]] = set()
    tests: list[Scalar] = []
    absent = False
    for entry in entries:
        if isinstance(entry, Mapping):
            if _operator(entry, path) == ("exists", False):
                absent = True
            else:
                tests.append(_test(*_operator(entry, path), path, textual_numbers))
        elif textual_numbers and _is_number(entry):
            tests.append(_numeric(["=", entry], path, textual_numbers=True))
        else:
            exact.add(_identity(entry, path))

    def match(value: Any) -> bool:
        kind = type(value)
        if kind in SCALARS:
            return (kind, value) in exact or (bool(tests) and any(test(value) for test in tests))
        found = list(_scalars(value))
        return any(match(one) for one in found) if found else absent

    return match


def _scalars(value: Any) -> Iterator[Any]:
    """Yield the values at a leaf: those of an array each; an object is no leaf."""
    if isinstance(value, list):
        for one in value:
            yield from _scalars(one)
    elif type(value) in SCALARS:
        yield value


def _identity(value: Any, path: str) -> tuple[type, Any]:
    """Return what makes a value itself: 1 is not true, and 300 is not 300.0, since AWS compares how they are written."""
    if not isinstance(value, str | int | float | None):
        raise PatternError(f"{path}: expected a string, number, true, false, null or an operator, got {_shown(value)}")
    return type(value), value


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


def _test(name: str, argument: Any, path: str, textual_numbers: bool) -> Scalar:
    place = f"{path}: {name}"
    if name == "exists":
        return lambda value: True
    if name == "numeric":
        return _numeric(argument, place, textual_numbers=textual_numbers)
    if name == "cidr":
        return _cidr(argument, place)
    if name == "anything-but":
        return _anything_but(argument, place)
    return _text(name, argument, place)


def _text(name: str, argument: Any, place: str) -> Scalar:
    if isinstance(argument, Mapping) and name in {"prefix", "suffix"} and list(argument) == ["equals-ignore-case"]:
        inner = _text_argument(argument["equals-ignore-case"], place).casefold()
        test = TEXT[name](inner)
        return lambda value: isinstance(value, str) and test(value.casefold())
    test = TEXT[name](_text_argument(argument, place))
    return lambda value: isinstance(value, str) and test(value)


def _text_argument(argument: Any, place: str) -> str:
    if not isinstance(argument, str):
        raise PatternError(f"{place}: expected a string, got {_shown(argument)}")
    return argument


def _equals_ignore_case(wanted: str) -> Callable[[str], bool]:
    folded = wanted.casefold()
    return lambda value: value.casefold() == folded


def _wildcard(wanted: str) -> Callable[[str], bool]:
    r"""Return a test of `*` for any characters; `\*` and `\\` are themselves."""
    parts = re.findall(r"\\[*\\]|\*+|[^*\\]+|\\", wanted)
    if any(part == "\\" or part.startswith("**") for part in parts):
        raise PatternError(f"wildcard: {wanted!r}: expected single * and \\* or \\\\ for the characters themselves")
    expression = "".join(".*" if part == "*" else re.escape(part.removeprefix("\\")) for part in parts)
    compiled = re.compile(expression, re.DOTALL).fullmatch
    return lambda value: compiled(value) is not None


TEXT: dict[str, Callable[[str], Callable[[str], bool]]] = {
    "prefix": lambda wanted: lambda value: value.startswith(wanted),
    "suffix": lambda wanted: lambda value: value.endswith(wanted),
    "equals-ignore-case": _equals_ignore_case,
    "wildcard": _wildcard,
}


def _numeric(argument: Any, place: str, *, textual_numbers: bool) -> Scalar:
    if not isinstance(argument, list | tuple) or len(argument) not in {2, 4}:
        raise PatternError(f'{place}: expected [">", 0] or [">", 0, "<=", 5], got {_shown(argument)}')
    tests: list[tuple[Callable[[Any, Any], bool], Any]] = []
    for comparison, bound in zip(argument[::2], argument[1::2], strict=True):
        if comparison not in COMPARISONS or not _is_number(bound) or abs(bound) > LARGEST:
            raise PatternError(
                f"{place}: expected one of {', '.join(COMPARISONS)} and a number up to {LARGEST:,}, "
                f"got {_shown(comparison)} and {_shown(bound)}"
            )
        tests.append((COMPARISONS[comparison], Decimal(str(bound)) if textual_numbers else bound))

    def match(value: Any) -> bool:
        if textual_numbers and isinstance(value, str):
            try:
                value = Decimal(value)
            except InvalidOperation:
                return False
        elif not _is_number(value):
            return False
        return all(compare(value, bound) for compare, bound in tests)

    return match


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cidr(argument: Any, place: str) -> Scalar:
    try:
        network = ip_network(_text_argument(argument, place), strict=False)
    except ValueError as error:
        if isinstance(error, PatternError):
            raise
        raise PatternError(f"{place}: expected a block of addresses such as 10.0.0.0/24: {error}") from error

    def match(value: Any) -> bool:
        try:
            return isinstance(value, str) and ip_address(value) in network
        except ValueError:
            return False

    return match


def _anything_but(argument: Any, place: str) -> Scalar:
    if isinstance(argument, Mapping):
        name, inner = _operator(argument, place)
        if name not in TEXT:
            raise PatternError(f"{place}: expected one of {', '.join(TEXT)}, got {name}")
        wanted = inner if isinstance(inner, list | tuple) else [inner]
        tests = [_text(name, one, f"{place}: {name}") for one in wanted]
        return lambda value: not any(test(value) for test in tests)
    wanted = argument if isinstance(argument, list | tuple) else [argument]
    if not wanted or not all(isinstance(one, str) or _is_number(one) for one in wanted):
        raise PatternError(f"{place}: expected strings or numbers, got {_shown(argument)}")
    excluded = {_identity(one, place) for one in wanted}
    return lambda value: (type(value), value) not in excluded


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
