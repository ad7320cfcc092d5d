"""Conditions in CEL (the Common Expression Language) over a change. Pure.

The binding is behind `compile_expression` and `compile_value`.

What an expression can name: `op` (c, u, d, r), `table`, `key`, `before`, `after` (the item, as plain values, or null),
`changed("attribute")`, `ttl_expired`; behind the enrichment also `enriched`, what it has added. Only what it names is
decoded. Numbers of DynamoDB are CEL's integers where they are whole and fit in 64 bits, else its doubles.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import cel
import msgspec

from models.attributes import normal
from models.change import Change
from pipeline.steps.project import projection

NAMES = ("op", "table", "key", "before", "after", "ttl_expired")
ENRICHED = "enriched"
BOUND = re.compile(r"\.(?:all|exists|exists_one|map|filter)\(\s*([A-Za-z_]\w*)\s*,")
"""Finds the names that a macro gives to the elements of a list."""
_TEXT = r"""(?:"[^"\\]*"|'[^'\\]*')"""
EQUALITY = re.compile(r"""\s*(before|after|key)\.([A-Za-z]\w*)\s*==\s*(?:"([^"\\]+)"|'([^'\\]+)')\s*""").fullmatch
"""Matches a comparison of an attribute with text."""
CHEAP = re.compile(rf"\s*(?:op|table)\s*(?:(?:==|!=)\s*{_TEXT}|in\s*\[\s*{_TEXT}(?:\s*,\s*{_TEXT})*\s*\])\s*").fullmatch
"""Matches a comparison of `op` or `table` with constants."""
Condition = Callable[[bytes, Change], bool]
"""Takes a change's bytes and the change; raises ExpressionError when it cannot be told."""
Evaluate = Callable[[bytes, Change, Mapping[str, msgspec.Raw]], Any]
"""Takes a change's bytes, the change and what was added to it; raises ExpressionError when there is no value."""


class ExpressionError(ValueError):
    """An expression that cannot be compiled, or cannot be told of a change; says which, and why."""


def compile_expression(text: str) -> Condition:
    """Compile a condition over a change; raise ExpressionError that says what is wrong.

    >>> big = compile_expression('table == "orders" && op != "d" && after.total > 100')
    """
    evaluate = compile_value(text, NAMES)
    cheap, dear = _parts(text)
    rules = [rule for part in dear if (rule := _equality(part)) is not None]
    facts = [_fact_test(part) for part in cheap]
    rest = compile_value(" && ".join(dear), NAMES) if cheap and dear else evaluate

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


def _fact_test(part: str) -> Callable[[Change], bool]:
    """Return what tells a comparison of `op` or `table` with constants, without CEL: they are text, and always there."""
    constants = frozenset(found[0][1:-1] for found in re.finditer(_TEXT, part))
    wanted = "!=" not in re.sub(_TEXT, "", part)
    if part.lstrip().startswith("op"):
        return lambda change: (change.op in constants) is wanted
    return lambda change: (change.table in constants) is wanted


def _equality(part: str) -> Callable[[Change], bool] | None:
    """Return what tells that `after.name == "text"` does not hold, as there is other text; None: it is no such part."""
    if (match := EQUALITY(part)) is None:
        return None
    name, text = match[2], match[3] or match[4]
    image = {"after": attrgetter("new_image"), "before": attrgetter("old_image"), "key": attrgetter("keys")}[match[1]]
    one = msgspec.defstruct("One", [("value", Text, msgspec.field(name=name, default=NO_TEXT))])
    look = msgspec.json.Decoder(one).decode

    def differs(change: Change) -> bool:
        try:
            found = look(image(change.body)).value.text  # type: ignore[attr-defined]  # made at run time
        except msgspec.DecodeError:  # or there is no such image
            return False
        return found is not None and found != text

    return differs


class Text(msgspec.Struct, gc=False, frozen=True):
    """An attribute value, if it is text."""

    text: str | None = msgspec.field(name="S", default=None)


NO_TEXT = Text()


def _parts(text: str) -> tuple[list[str], list[str]]:
    """Return what `&&` joins at the top of an expression: what asks for `op` and `table` alone, and the others."""
    parts, depth, begin, at, quoted = [], 0, 0, 0, ""
    while at < len(text):
        char = text[at]
        if quoted:
            at += char == "\\"
            quoted = "" if char == quoted else quoted
        elif char in "\"'":
            if text[at : at + 3] in {'"""', "'''"} or text[at - 1 : at] in {"r", "R"}:
                return [], [text]  # strings of other kinds: left whole
            quoted = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif depth == 0 and (char == "?" or text.startswith("||", at)):
            return [], [text]
        elif depth == 0 and text.startswith("&&", at):
            parts.append(text[begin:at])
            begin = at + 2
            at += 1
        at += 1
    parts.append(text[begin:])
    cheap = [part for part in parts if CHEAP(part) is not None]
    return cheap, [part for part in parts if CHEAP(part) is None]


def truth(text: str, answer: Any) -> bool:
    """Return the answer of a condition; raise ExpressionError when it is neither true nor false."""
    if not isinstance(answer, bool):
        raise ExpressionError(f"{text}: gave {answer!r}, expected true or false")
    return answer


def compile_value(text: str, names: Sequence[str] = (*NAMES, ENRICHED)) -> Evaluate:
    """Compile an expression that gives a value, and may name these; raise ExpressionError that says what is wrong."""
    try:
        program = cel.compile(text)
    except ValueError as error:
        raise ExpressionError(_first_line(error)) from error
    named = program.variables()
    unknown = sorted(set(named) - set(names) - set(BOUND.findall(text)))
    if unknown:
        raise ExpressionError(f"{', '.join(unknown)}: there is no such name, expected one of {', '.join(names)}")
    facts = {name: _fact(name, text) for name in NAMES if name in named}
    asks_changed = "changed" in program.functions()
    asks_enriched = ENRICHED in named

    def evaluate(value: bytes, change: Change, added: Mapping[str, msgspec.Raw]) -> Any:
        found: dict[str, Any] = {name: fact(value, change) for name, fact in facts.items()}
        if asks_changed:
            found["changed"] = lambda attribute: _changed(change, attribute)
        if asks_enriched:
            found[ENRICHED] = {name: plain(_decode_value(one)) for name, one in added.items()}
        try:
            return program.execute(found)
        except (KeyError, ValueError, TypeError, OverflowError, RuntimeError, ArithmeticError) as error:
            raise ExpressionError(f"{text}: {_reason(error, change, found)}") from error

    return evaluate


def _reason(error: Exception, change: Change, facts: Mapping[str, Any]) -> str:
    """Say why an expression could not be told. Of null CEL says no more than that types do not fit."""
    if isinstance(error, KeyError):
        return f"there is no {error}: ask has() first"
    for image in ("after", "before"):
        if image in facts and facts[image] is None:
            if image == "after" and change.op == "d":
                return "after is null, since this is a deletion: begin with op != 'd' && ..."
            return f"{image} is null here: begin with {image} != null && ..."
    return _first_line(error)


def _fact(name: str, text: str) -> Callable[[bytes, Change], Any]:
    if name in {"before", "after"}:
        decode = _image_decoder(name, text)
        return lambda value, change: _plain_image(change.before if name == "before" else change.after, decode)
    facts: dict[str, Callable[[bytes, Change], Any]] = {
        "op": lambda value, change: change.op,
        "table": lambda value, change: change.table,
        "key": lambda value, change: _plain_image(bytes(change.body.keys), _decode_item),
        "ttl_expired": lambda value, change: change.op == "d" and _decode_identity(value).by_ttl,
    }
    return facts[name]


def attributes(image: str, text: str) -> frozenset[str] | None:
    """Return the attributes of `before` or `after` that an expression names; None where that cannot be told."""
    named = re.findall(rf"\b{image}\b(?:\s*\.\s*([A-Za-z_]\w*)(?!\s*\())?", text)
    return None if "" in named else frozenset(named)


def _image_decoder(name: str, text: str) -> Callable[[bytes], Any]:
    """Return what decodes the attributes that an expression names, or the whole image where that cannot be told."""
    named = attributes(name, text)
    return projection(dict.fromkeys(named, True)) if named else _decode_item


def _plain_image(image: bytes | None, decode: Callable[[bytes], Any]) -> dict[str, Any] | None:
    return None if image is None else {name: plain(value) for name, value in decode(image).items()}


def plain(value: Mapping[str, Any]) -> Any:
    """Return an attribute value as CEL has it: sets are lists, binary is bytes."""
    ((tag, inner),) = value.items()
    if tag == "N":
        return _number(inner)
    if tag == "NULL":
        return None
    if tag == "B":
        return base64.b64decode(inner)
    if tag == "M":
        return {name: plain(one) for name, one in inner.items()}
    if tag == "L":
        return [plain(one) for one in inner]
    if tag == "NS":
        return [_number(one) for one in inner]
    if tag == "BS":
        return [base64.b64decode(one) for one in inner]
    return inner


def _number(text: str) -> int | float:
    try:
        whole = int(text)
    except ValueError:
        return float(text)
    return whole if -(1 << 63) <= whole < 1 << 63 else float(whole)


def _changed(change: Change, attribute: str) -> bool:
    """Say whether an attribute is another than before; one that came or went is.

    Dots lead into maps, unless an image has an attribute of that very name.
    """
    before, after = ({} if image is None else _decode_item(image) for image in (change.before, change.after))
    path = [attribute] if attribute in before or attribute in after else attribute.split(".")
    values = [_at(image, path) for image in (before, after)]
    known = [None if value is None else normal(value) for value in values]
    return known[0] != known[1]


def _at(item: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Return the attribute value at a path through maps, None when there is none."""
    first, *rest = path
    value = item.get(first)
    return _at(value.get("M", {}), rest) if rest and value is not None else value


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
