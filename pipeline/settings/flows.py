"""The settings of flows: what is in `[[flows]]` of headwater.toml, and on the flows topic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationInfo,
    model_validator,
)

from models.attribute_path import is_added, parse, readings
from pipeline.settings.base import PUBLISHED, Name, NamePath, NewName, Path, Section, SinkName
from pipeline.settings.enrich import (
    Condition,
    EnrichSettings,
    JoinSettings,
    KeyUri,
    LookupSettings,
    MaskSettings,
    PythonSettings,
    SqlSettings,
)
from pipeline.settings.formats import EnvelopeSettings, FormatSettings, KeyFormatSettings, as_kind
from pipeline.settings.published import secrets_in_headers, secrets_in_url


class RouteSettings(Section):
    """Where changes go."""

    sink: SinkName = Field(
        description="The sink topic is <prefix>.sink.<sink>; {table}, {op} and {source} are filled in."
    )
    where: Condition | None = Field(
        None, description="A pattern as in Lambda event filtering, or an expression in CEL; without it, everything."
    )


def _routes(value: Any) -> Any:
    listed = [value] if isinstance(value, (str, Mapping)) else value
    return (
        [{"sink": name} if isinstance(name, str) else name for name in listed]
        if isinstance(listed, list | tuple)
        else listed
    )


class FlowSettings(Section):
    """A named path from raw to sink topics: filter, enrich, shape, route."""

    name: Name = Field(description="Its name; no two may have the same.")
    tables: tuple[Name, ...] = Field(
        (), validation_alias=AliasChoices("from", "tables"), description="Tables; empty: all."
    )
    where: Condition | None = Field(
        None,
        description="A pattern as in Lambda event filtering, or an expression in CEL: what does not match is left out.",
    )
    enrich: tuple[EnrichSettings, ...] = Field((), description="What is added, step by step: see [[flows.enrich]].")
    select: tuple[Path, ...] = Field(
        (), description="The attributes that are kept; empty: all. Key attributes always stay in the key."
    )
    drop: tuple[Path, ...] = Field((), description="Attributes that are left out.")
    rename: dict[NamePath, NewName] = Field(
        default_factory=dict, description="New names of attributes, by their old ones."
    )
    mask: tuple[MaskSettings, ...] = Field(
        (), description="Attributes that nobody downstream may read: see [[flows.mask]]."
    )
    mask_key: KeyUri | None = Field(
        None,
        description="The key of the masks: file:PATH of 32 random bytes in base64, env:NAME of a variable that holds them, or "
        "kms:PATH of a data key that AWS KMS has encrypted.",
    )
    through: Name | None = Field(
        None, description="Also writes what the steps made to <prefix>.enriched.<through>, before it is routed."
    )
    to: Annotated[tuple[RouteSettings, ...], BeforeValidator(_routes)] = Field(
        min_length=1, description="Sinks, or rules that lead to sinks: see [[flows.to]]."
    )
    match: Literal["first", "all"] = Field(
        "first", description="Whether a change goes to the first sink whose `where` matches, or to all of them."
    )
    otherwise: SinkName | None = Field(
        None, description="The sink of changes that no `where` matches; without it, they are left out."
    )
    on_leave: Literal["delete", "tombstone", "ignore"] | None = Field(
        None,
        description="What a sink gets when an item no longer matches what leads there. delete: what the envelope writes for a "
        "deletion. tombstone: the key and null. ignore: nothing. The default is delete with several sinks, ignore with one.",
    )
    envelope: Annotated[EnvelopeSettings, BeforeValidator(as_kind)] = EnvelopeSettings()
    format: Annotated[FormatSettings, BeforeValidator(as_kind)] = FormatSettings()
    key_format: Annotated[KeyFormatSettings, BeforeValidator(as_kind)] = KeyFormatSettings()
    order: Literal["loose", "strict"] = Field(
        "loose",
        description="strict: after a rejected change, the later ones of its item wait until it was retried or discarded.",
    )
    reject_limit: float = Field(
        0.5,
        gt=0,
        le=1,
        description="The share of the last 1,000 changes that a flow may reject; beyond it, it stops instead of filling the "
        "dead letters.",
    )

    @model_validator(mode="after")
    def _masks_have_a_key(self) -> FlowSettings:
        if self.mask and self.mask_key is None:
            raise ValueError(
                "mask_key: masks need a key, their dead letters are encrypted with it; headwater flows new-key FILE makes one"
            )
        return self

    @model_validator(mode="after")
    def _publishes_no_secrets(self, info: ValidationInfo) -> FlowSettings:
        if (info.context or {}).get(PUBLISHED):
            return self
        for n, step in enumerate(self.enrich):
            if isinstance(step, LookupSettings):
                for problem in (*secrets_in_url(step.url or ""), *secrets_in_headers(step.headers)):
                    raise ValueError(f"enrich.{n}: the flow {self.name}, lookup {step.into}: {problem}")
        return self

    @model_validator(mode="after")
    def _masks_reach_what_is_added(self) -> FlowSettings:
        if any(isinstance(step, SqlSettings | PythonSettings) for step in self.enrich):
            return self  # what those add nobody knows
        added = {step.into for step in self.enrich if not isinstance(step, SqlSettings | PythonSettings)}
        for n, mask in enumerate(self.mask):
            path = parse(mask.path)
            if is_added(path) and not any(name in added for name, _ in readings(path[1:])):
                known = ", ".join(f"enriched.{name}" for name in sorted(added)) or "nothing"
                raise ValueError(f"mask.{n}.path: {mask.path} is not among what the steps add ({known})")
        return self

    @model_validator(mode="after")
    def _sends_known_tables_again(self) -> FlowSettings:
        for step in self.enrich:
            if isinstance(step, JoinSettings) and step.is_partitioned and step.re_emits and not self.tables:
                raise ValueError(
                    f'join: on_reference_change = "re-emit" with the partitioned table {step.table} needs '
                    "from = the tables whose changes are sent again"
                )
        return self

    @model_validator(mode="after")
    def _every_route_can_be_reached(self) -> FlowSettings:
        whole = [n for n, route in enumerate(self.to) if route.where is None]
        if self.match == "first" and whole and whole[0] < len(self.to) - 1:
            raise ValueError(
                f'to.{whole[0]} takes everything, so to.{whole[0] + 1} never gets anything: put it last, or match = "all"'
            )
        if whole and self.otherwise is not None:
            raise ValueError(f"otherwise: never gets anything, to.{whole[0]} takes everything")
        return self

    @model_validator(mode="after")
    def _something_can_leave(self) -> FlowSettings:
        if self.on_leave is not None and not self._can_leave:
            raise ValueError(
                f"on_leave: nothing ever leaves {' or '.join(self.sinks)}: "
                + (
                    "their names have {op}, so they hold changes of a kind, not items"
                    if self._has_conditions
                    else "neither the flow nor one of its routes has a `where`"
                )
            )
        return self

    @model_validator(mode="after")
    def _formats_have_documents(self) -> FlowSettings:
        if self.envelope.kind in {"plain", "debezium"}:
            return self
        for name, has_schema, form in (
            ("format", self.format.has_schema, self.format),
            ("key_format", self.key_format.is_struct, self.key_format),
        ):
            if has_schema:
                kind = "json with schemas" if form.schemas else form.kind
                raise ValueError(f"{name} {kind}: needs the envelope plain or debezium, not {self.envelope.kind}")
        return self

    @property
    def references(self) -> list[str]:
        """The reference tables and topics that its steps read and every worker keeps whole."""
        asked = (table for step in self.enrich if isinstance(step, SqlSettings) for table in step.tables)
        return list(dict.fromkeys([*self.joined, *asked]))

    @property
    def joined(self) -> list[str]:
        """The tables that are joined by a foreign key."""
        return [step.reference for step in self.enrich if isinstance(step, JoinSettings) and not step.is_partitioned]

    @property
    def partitioned(self) -> list[str]:
        """The reference tables that are kept by partition."""
        joins = [step for step in self.enrich if isinstance(step, JoinSettings) and step.is_partitioned]
        return list(dict.fromkeys(step.table for step in joins if step.table is not None))

    @property
    def sinks(self) -> list[str]:
        """The sinks that it names, templates among them."""
        return list(dict.fromkeys([*(route.sink for route in self.to), *([self.otherwise] if self.otherwise else [])]))

    @property
    def leaves(self) -> Literal["delete", "tombstone"] | None:
        """What a sink gets when an item leaves it; None: nothing."""
        chosen = self.on_leave or ("delete" if len(self.sinks) > 1 else "ignore")
        return None if chosen == "ignore" or not self._can_leave else chosen

    @property
    def _has_conditions(self) -> bool:
        return self.where is not None or any(route.where is not None for route in self.to)

    @property
    def _can_leave(self) -> bool:
        return self._has_conditions and any(map(holds_items, self.sinks))


def fill(template: str, *, table: str, op: str, source: str) -> str:
    """Return the name of a sink: the template, filled in."""
    if "{" not in template:
        return template
    return template.replace("{table}", table).replace("{op}", op).replace("{source}", source)


def holds_items(sink: str) -> bool:
    """Say whether an item is in a sink, or its changes of one kind alone."""
    return "{op}" not in sink


def is_template(sink: str) -> bool:
    """Say whether a sink's name depends on the change."""
    return bool(re.search(r"[{}]", sink))
