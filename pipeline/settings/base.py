"""What the settings of all tables are made of: sections, names, templates."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
)

from models.attribute_path import parse

PUBLISHED = "published"
"""In the context of a validation: the flows are on the topic already, where nothing is to be prevented any more."""


def formed(form: str, words: str) -> AfterValidator:
    """Take text of a form alone; for anything else the error says in words what was expected."""
    fits = re.compile(form).fullmatch

    def check(text: str) -> str:
        if fits(text) is None:
            raise ValueError(f"expected {words}")
        return text

    return AfterValidator(check)


def template(*names: str, more: str = "") -> AfterValidator:
    """Take a name, or a template of one: letters, digits, what is allowed beside . _ - and these names in braces."""
    known = [f"{{{name}}}" for name in names]
    form = re.compile(rf"(?:[A-Za-z0-9._{re.escape(more)}-]|{'|'.join(map(re.escape, known))})+")

    def check(text: str) -> str:
        for place in re.findall(r"\{[^{}]*\}", text):
            if place not in known:
                raise ValueError(f"unknown {place}, expected {', '.join(known)}")
        if form.fullmatch(text) is None:
            raise ValueError(f"expected letters, digits, {' '.join(['.', '_', '-', *more, *known])}")
        return text

    return AfterValidator(check)


Name = Annotated[str, Field(max_length=120), formed(r"[A-Za-z0-9._-]+", "letters, digits, . _ -")]
SinkName = Annotated[str, Field(max_length=200), template("table", "op", "source")]
"""The name of a sink, or a template of it."""


def parsed(path: str) -> str:
    """Take the path of attributes, if it is one."""
    parse(path)
    return path


def of_one(path: str) -> str:
    """Take the path of one attribute."""
    if None in parse(path):
        raise ValueError(f"{path!r}: [*] names many values, where one is needed")
    return path


def of_name(path: str) -> str:
    """Take the path of an attribute that has a name."""
    if not isinstance(parse(path)[-1], str):
        raise ValueError(f"{path!r}: an element of a list has no name to change")  # noqa: TRY004 - of a value
    return path


Path = Annotated[str, Field(max_length=1000), AfterValidator(parsed)]
"""Where attributes are: `email`, `address.street`, `phones[*].number`, `enriched.customer.email`."""
OnePath = Annotated[str, Field(max_length=1000), AfterValidator(of_one)]
"""Where one attribute is."""
NamePath = Annotated[str, Field(max_length=1000), AfterValidator(of_name)]
"""Where an attribute is that has a name."""
NewName = Annotated[str, Field(min_length=1, max_length=255)]


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
