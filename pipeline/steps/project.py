"""Decode of a JSON object only what is asked for: the rest is skipped in C, which is what most of the time goes to. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import msgspec


class Number(str):
    """A number with a fraction or an exponent, as it is written: a pattern tells 300.0 from 3.0e2."""

    __slots__ = ()


def projection(names: Mapping[str, Any]) -> Callable[[bytes], Any]:
    """Return a decoder that keeps these names (see `filter.fields`) and leaves all others out.

    What is there instead of an object comes as it is: an array whole, with all that its objects have. Numbers with a
    fraction or an exponent come as `Number` where a whole value is asked for.
    """
    return msgspec.json.Decoder(_node(names), float_hook=Number).decode


def _node(names: Mapping[str, Any]) -> Any:
    types = {name: Any if rest is True else _node(rest) for name, rest in names.items()}
    keep = TypedDict("keep", types, total=False)  # type: ignore[misc]  # its fields are known at run time only
    return keep | list[Any] | str | int | float | bool | None
