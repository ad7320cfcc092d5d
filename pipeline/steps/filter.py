"""Patterns as in Lambda event filtering: a nested dict whose leaves are lists of the values that match.

Exact values only, here; a pattern with another operator is refused when it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Predicate = Callable[[Mapping[str, Any]], bool]
"""Takes a decoded change, says whether it matches."""


class PatternError(ValueError):
    """The pattern cannot be compiled; says where and what was expected."""


def compile_pattern(pattern: Mapping[str, Any], path: str = "") -> Predicate:
    """Compile a pattern. All fields of it must match; a field that the change lacks does not match.

    >>> paid = compile_pattern({"dynamodb": {"NewImage": {"status": {"S": ["paid"]}}}})
    >>> paid({"dynamodb": {"NewImage": {"status": {"S": "paid"}}}})
    True
    >>> paid({"dynamodb": {}})
    False
    """
    if not pattern:
        raise PatternError(f"{path or 'pattern'}: is empty, expected fields")
    tests = [(name, _compile(rest, f"{path}.{name}" if path else name)) for name, rest in pattern.items()]
    return lambda change: all(name in change and test(change[name]) for name, test in tests)


def _compile(rest: Any, path: str) -> Callable[[Any], bool]:
    if isinstance(rest, Mapping):
        inner = compile_pattern(rest, path)
        return lambda value: isinstance(value, Mapping) and inner(value)
    if not isinstance(rest, list | tuple) or not rest:
        raise PatternError(f"{path}: expected a list of values or nested fields, got {rest!r}")
    for value in rest:
        if not isinstance(value, str | int | float | bool | None):
            raise PatternError(f"{path}: expected a string, number, true, false or null, got {value!r}")
    # (type, value): in JSON 1 is not true, in Python it is.
    exact = {(isinstance(value, bool), value) for value in rest}
    return lambda value: isinstance(value, str | int | float | None) and (isinstance(value, bool), value) in exact
