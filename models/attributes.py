"""Attribute values: DynamoDB's typed JSON, compared and shown."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Any

type_tags = ("S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS")


EXACT = Context(prec=200)
"""DynamoDB's numbers have up to 38 digits; Decimal's own default rounds to 28."""


def normal(value: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a hashable form of one attribute value in which equal values are equal.

    `{"N": "1.0"}` equals `{"N": "1"}`, sets have no order. Binary is base64 text or bytes, as it came.
    """
    if len(value) != 1:
        raise ValueError(f"an attribute value has one type tag, this has {len(value)}: {dict(value)!r}")
    ((tag, inner),) = value.items()
    if tag == "N":
        return tag, _number(inner)
    if tag == "NS":
        return tag, frozenset(_number(n) for n in inner)
    if tag in {"SS", "BS"}:
        return tag, frozenset(inner)
    if tag == "L":
        return tag, tuple(normal(v) for v in inner)
    if tag == "M":
        return tag, normal_item(inner)
    if tag in type_tags:
        return tag, inner
    raise ValueError(f"unknown attribute type {tag!r}")


def normal_item(item: Mapping[str, Mapping[str, Any]]) -> frozenset[tuple[str, tuple[Any, ...]]]:
    """Return a hashable form of an item's attributes in which equal items are equal."""
    return frozenset((name, normal(value)) for name, value in item.items())


def _number(text: str) -> tuple[Any, ...]:
    return Decimal(text).normalize(EXACT).as_tuple()
