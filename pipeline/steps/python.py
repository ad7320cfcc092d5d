"""Functions of users as steps. Pure, as far as theirs are.

A function is declared by `@enrich("name")` and named in a flow: `{ kind = "python", name = "name" }`. It gets changes as plain
Python values and returns what is added to each; what it raises rejects the change.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, localcontext
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from models.attributes import python_item, python_value, typed
from pipeline.errors import TransientError, UsageError
from pipeline.packages import own_packages
from pipeline.steps.event import Event, Item, Step

F = TypeVar("F", bound=Callable[..., Any])


class Drop:
    """What a function returns to leave a change out: `DROP`."""

    def __repr__(self) -> str:
        return "DROP"


DROP: Final = Drop()


class ChangeView:
    """A change, as functions see it. Strings are str, numbers Decimal, binary bytes, sets set, null None.

    Images are decoded when they are asked for, once.
    """

    __slots__ = ("_cache", "_event")

    def __init__(self, event: Event) -> None:
        self._event = event
        self._cache: dict[str, Any] = {}

    @property
    def op(self) -> str:
        """What happened: c insert, u modify, d remove, r snapshot read."""
        return self._event.change.op

    @property
    def table(self) -> str:
        """The table's name."""
        return self._event.change.table

    @property
    def event_id(self) -> str:
        """The event ID."""
        return self._event.change.event_id

    @property
    def at(self) -> datetime:
        """When it happened, as AWS says."""
        return datetime.fromtimestamp(self._event.change.ts_us / 1_000_000, UTC)

    @property
    def key(self) -> dict[str, Any]:
        """The key attributes."""
        return self._decoded("key", self._event.keys) or {}

    @property
    def before(self) -> dict[str, Any] | None:
        """The item before the change."""
        return self._decoded("before", self._event.before)

    @property
    def after(self) -> dict[str, Any] | None:
        """The item after the change."""
        return self._decoded("after", self._event.after)

    @property
    def enriched(self) -> dict[str, Any]:
        """What earlier steps have added."""
        return {name: python_value(_decode(value)) for name, value in self._event.added.items()}

    def _decoded(self, name: str, item: Item | None) -> dict[str, Any] | None:
        if name not in self._cache:
            self._cache[name] = None if item is None else python_item({n: _decode(v) for n, v in item.items()})
        return self._cache[name]  # type: ignore[no-any-return]  # what was put there

    def __repr__(self) -> str:
        return f"<Change {self.op} {self.table} {self.event_id}>"


@dataclass(frozen=True, slots=True)
class Function:
    """A function that was declared."""

    name: str
    call: Callable[[Any], Any]
    batch: bool
    """Whether it takes the changes of a batch at once."""


MARK = "__headwater_enrich__"
RENAME = "rename it, or move it into a package with a name of its own"
"""What to do about a module that another one hides."""
NUMBERS = Context(prec=76)
"""What functions compute in: the product of two numbers of DynamoDB, of 38 digits each, is exact. Python's own has 28."""
_decode = msgspec.json.decode


def enrich(name: str, *, batch: bool = False) -> Callable[[F], F]:
    """Declare a function that a flow may name.

    It takes a `Change` and returns a dict of what is added to it, None for nothing, or `DROP` to leave it out. With `batch`
    it takes a list of changes and returns a list of the same length. Returned values may be str, int, Decimal, float, bytes,
    bool, None, and lists, sets and dicts of them.

    >>> @enrich("price class")
    ... def price_class(change):
    ...     return {"class": "dear" if change.after["total"] > 1000 else "cheap"}
    """

    def declare(function: F) -> F:
        setattr(function, MARK, Function(name, function, batch))
        return function

    return declare


def load_functions(modules: Sequence[str]) -> dict[str, Function]:
    """Return the functions that modules declare, by name; they are looked for in the working directory, too, but last.

    Raise UsageError for a module that cannot be imported, or that another module of its name hides.
    """
    found: dict[str, Function] = {}
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, as in the worker: it must not hide what is installed
    for module in modules:
        try:
            names = vars(importlib.import_module(module))
        except ImportError as error:
            raise _not_imported(module, error, error.name or module) from error
        except Exception as error:
            raise _not_imported(module, error, "") from error
        _require_not_hidden(module, names.get("__file__"))
        for value in names.values():
            function = getattr(value, MARK, None)
            if not isinstance(function, Function):
                continue
            if (other := found.get(function.name)) is not None and other.call is not function.call:
                raise UsageError(
                    f"modules: two functions are declared as {function.name!r}", hint=f"grep -n enrich {module}"
                )
            found[function.name] = function
    return found


def _not_imported(module: str, error: Exception, missing: str) -> UsageError:
    """Return what is wrong with a module that raised `error`; `missing` is what could not be imported, if it was that."""
    name = missing.partition(".")[0]
    for hiding in own_packages.hidden():
        if hiding.name == name:
            return UsageError(f"modules: {module} needs {missing}, but {hiding}", hint=RENAME)
    return UsageError(
        f"modules: {module} cannot be imported: {type(error).__name__}: {error}",
        hint=f"PYTHONPATH=. python -c 'import {module}'",
    )


def _require_not_hidden(module: str, file: str | None) -> None:
    """Raise UsageError where the working directory has a module of this name, and another one was imported."""
    name = module.partition(".")[0]
    here = own_packages.candidate(str(Path.cwd()), name)
    if here and file is not None and not Path(file).resolve().is_relative_to(Path.cwd().resolve()):
        raise UsageError(f"modules: {here} is hidden: {module} is {file}, which is imported instead", hint=RENAME)


def call(function: Function) -> Step:
    """Return the step that calls a function."""
    return _whole(function) if function.batch else _one_by_one(function)


def _one_by_one(function: Function) -> Step:
    def step(events: Sequence[Event]) -> None:
        for event in events:
            try:
                with localcontext(NUMBERS):
                    answer = function.call(ChangeView(event))
                _take(function, event, answer)
            except TransientError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                event.error = error

    return step


def _whole(function: Function) -> Step:
    one_by_one = _one_by_one(Function(function.name, lambda change: _answers(function, [change])[0], batch=False))

    def step(events: Sequence[Event]) -> None:
        try:
            with localcontext(NUMBERS):
                answers = _answers(function, [ChangeView(event) for event in events])
        except TransientError:
            raise
        except Exception:  # noqa: BLE001 - which of them is at fault shows when they are given one by one
            one_by_one(events)
            return
        for event, answer in zip(events, answers, strict=True):
            try:
                _take(function, event, answer)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                event.error = error

    return step


def _answers(function: Function, changes: list[ChangeView]) -> list[Any]:
    answers = function.call(changes)
    if not isinstance(answers, list) or len(answers) != len(changes):
        raise TypeError(f"{function.name} got {len(changes)} changes: it returns a list of as many dicts")
    return answers


def _take(function: Function, event: Event, answer: Any) -> None:
    if answer is None:
        return
    if answer is DROP:
        event.gone = True
    elif isinstance(answer, Mapping):
        event.added |= {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in typed(answer)["M"].items()}
    else:
        raise TypeError(f"{function.name} returned {type(answer).__name__}: it returns a dict, None or DROP")
