"""The settings of flows: what stands in `[[flows]]` of headwater.toml, and on the flows topic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)

from pipeline.settings.published import secrets_in_headers, secrets_in_url
from pipeline.steps.attribute_path import is_added, parse, readings

PUBLISHED = "published"
"""In the context of a validation: the flows are on the topic already, where nothing is to be prevented any more."""


def formed(form: str, words: str) -> AfterValidator:
    """Take text of a form alone; what else comes is told in words what was expected."""
    fits = re.compile(form).fullmatch

    def check(text: str) -> str:
        if fits(text) is None:
            raise ValueError(f"expected {words}")
        return text

    return AfterValidator(check)


def template(*names: str, more: str = "") -> AfterValidator:
    """Take a name, or a template of one: letters, digits, what may stand there beside . _ - and these names in braces."""
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


def _parsed(path: str) -> str:
    parse(path)
    return path


def _of_one(path: str) -> str:
    if None in parse(path):
        raise ValueError(f"{path!r}: [*] names many values, where one is needed")
    return path


def _of_name(path: str) -> str:
    if not isinstance(parse(path)[-1], str):
        raise ValueError(f"{path!r}: an element of a list has no name to change")  # noqa: TRY004 - of a value
    return path


Path = Annotated[str, Field(max_length=1000), AfterValidator(_parsed)]
"""Where attributes are: `email`, `address.street`, `phones[*].number`, `enriched.customer.email`."""
OnePath = Annotated[str, Field(max_length=1000), AfterValidator(_of_one)]
"""Where one attribute is."""
NamePath = Annotated[str, Field(max_length=1000), AfterValidator(_of_name)]
"""Where an attribute is that has a name."""
NewName = Annotated[str, Field(min_length=1, max_length=255)]
PLACE = re.compile(r"\{([^{}]+)\}")
"""Matches what stands in a url for an attribute of the change."""


def _places(url: str) -> str:
    if odd := re.search(r"[{}]", PLACE.sub("", url)):
        raise ValueError(f"there is a {odd[0]} that belongs to no {{attribute}}; in the url itself it is %7B or %7D")
    for place in PLACE.findall(url):
        _of_one(place)
    return url


Url = Annotated[str, formed(r"https?://[^/].*", "http://... or https://..."), AfterValidator(_places)]
"""Where a service is asked, with the paths of attributes in braces."""

Where: TypeAlias = dict[str, Any] | str
"""A pattern, or an expression in CEL."""
TOPIC = "topic:"
"""What the name of a reference begins with that is a topic."""
TABLE_OR_TOPIC = formed(rf"(?:{TOPIC})?[A-Za-z0-9._-]+", f"the name of a table, or {TOPIC} and that of a topic")
PARTITIONED = "partitioned:"
"""What the name of a reference begins with that is a table of which a worker keeps the items of its partitions."""
KeyUri = Annotated[str, formed(r"(?:file|kms):.+|env:\w+", "file:PATH, env:NAME of a variable, or kms:PATH")]


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Join(Section):
    """Adds the current item of another captured table, by a foreign key or by the item's own key."""

    kind: Literal["join"] = Field(description="The kind of the step.")
    table: Name | None = Field(None, description="The reference table: a captured DynamoDB table.")
    topic: Name | None = Field(
        None,
        description="A compacted topic instead of a table: its keys are what `on` holds, as text, its values JSON objects.",
    )
    state: Literal["global", "partitioned"] = Field(
        "global",
        description="global: every worker keeps the whole reference table. partitioned: each keeps the items of its "
        "partitions, and a change is joined with the item of its own key, as it was at its place in raw.",
    )
    on: OnePath | None = Field(
        None,
        description="With global: the attribute of the change that holds the reference table's partition key.",
    )
    into: str = Field(min_length=1, description="Under which name the item is added to the change.")
    missing: Literal["null", "drop", "reject"] = Field(
        "null",
        description="What becomes of a change when there is no such item: null is added (a left join), the change is left out "
        "(an inner join), or it becomes a dead letter.",
    )
    hold: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="Seconds for which a change waits at most for an item that is not there yet; the later changes of its item "
        "wait behind it.",
    )
    on_reference_change: Literal["ignore", "re-emit"] = Field(
        "ignore",
        description="re-emit: when the item of the reference table changes, the changes that it was added to are sent again.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Join:
        if (self.table is None) == (self.topic is None):
            raise ValueError("join: name a table or a topic")
        return self

    @model_validator(mode="after")
    def _joined_by_its_state(self) -> Join:
        if self.state == "global":
            if self.on is None:
                raise ValueError("join: a global table or topic needs on = the attribute that holds its key")
        elif self.topic is not None:
            raise ValueError('join: a topic is read whole by every worker: state = "global"')
        elif self.on is not None:
            raise ValueError(
                "join: a partitioned table is joined by the item's own key: leave `on` out, or make it global"
            )
        return self

    @property
    def is_partitioned(self) -> bool:
        """Whether a worker keeps the items of its partitions, not the whole table."""
        return self.state == "partitioned"

    @property
    def re_emits(self) -> bool:
        """Whether a change of the reference sends changes again."""
        return self.on_reference_change == "re-emit"

    @property
    def reference(self) -> str:
        """What is joined: the table's name, `partitioned:` and the table's, or `topic:` and the topic's."""
        if self.table is None:
            return f"{TOPIC}{self.topic}"
        return f"{PARTITIONED}{self.table}" if self.is_partitioned else self.table


class Compute(Section):
    """Adds what an expression in CEL gives."""

    kind: Literal["compute"] = Field(description="The kind of the step.")
    expression: str = Field(
        alias="as", min_length=1, description="An expression in CEL; it sees what `where` sees, and `enriched`."
    )
    into: str = Field(min_length=1, description="Under which name its value is added to the change.")


class Sql(Section):
    """Adds what a query gives, run by DuckDB over the changes of a batch."""

    kind: Literal["sql"] = Field(description="The kind of the step.")
    query: str = Field(
        min_length=1,
        description="Selects `id` (of the relation `changes`) and more columns: they are added to the change of this id under "
        "their names. A change whose id does not come back is left out.",
    )
    tables: tuple[Annotated[str, Field(max_length=249), TABLE_OR_TOPIC], ...] = Field(
        (),
        description="Reference tables that the query reads, as relations of their names; `topic:NAME` is a compacted topic, "
        "the relation NAME.",
    )

    @property
    def topics(self) -> list[str]:
        """Those of `tables` that are topics."""
        return [name for name in self.tables if name.startswith(TOPIC)]


class Lookup(Section):
    """Adds what an HTTP service or a DynamoDB table answers."""

    kind: Literal["lookup"] = Field(description="The kind of the step.")
    url: Url | None = Field(
        None,
        description="http(s)://...: {name} stands for an attribute of the change, `token=env:NAME` in its query for a secret. "
        "Answers JSON; 404: there is none.",
    )
    table: str | None = Field(
        None, min_length=3, description="A DynamoDB table, read by BatchGetItem, instead of a url."
    )
    region: str | None = Field(None, description="The table's AWS Region; without it, boto3's default.")
    key: dict[str, OnePath] = Field(
        default_factory=dict, description="With a table: for each of its key attributes the attribute of the change."
    )
    into: str = Field(min_length=1, description="Under which name the answer is added to the change.")
    headers: dict[str, str] = Field(
        default_factory=dict,
        description="HTTP headers. A secret is never written out: env:NAME is a variable of the worker's environment, "
        "file:/path a file that it reads, ${NAME} a variable within a value.",
        repr=False,
    )
    ttl: float = Field(300.0, ge=0, description="Seconds for which an answer is kept.")
    missing_ttl: float = Field(30.0, ge=0, description="Seconds for which it is kept that there is none.")
    cache: int = Field(100_000, ge=0, description="Answers kept at most.")
    timeout: float = Field(2.0, gt=0, le=10, description="Seconds that one call may take.")
    concurrency: int = Field(8, ge=1, le=64, description="Calls under way at once.")
    on_failure: Literal["retry", "reject", "pass"] = Field(
        "retry",
        description="When it does not answer: try the batch again until it does, make dead letters, or pass the change on with "
        "null and the header lookup_failed.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Lookup:
        if (self.url is None) == (self.table is None):
            raise ValueError("lookup: name a url or a table")
        if self.table is not None and not self.key:
            raise ValueError("lookup: a table needs key = { its key attribute = the change's attribute }")
        return self


class Python(Section):
    """Calls a function of your own, declared by `@enrich("name")` in a module of `modules`."""

    kind: Literal["python"] = Field(description="The kind of the step.")
    name: str = Field(min_length=1, description="The name that the function was declared with.")


ENRICH_KINDS = ("join", "compute", "sql", "lookup", "python")


def _kind(step: Any) -> Any:
    return step.get("kind") if isinstance(step, Mapping) else getattr(step, "kind", None)


EnrichSettings: TypeAlias = Annotated[
    Annotated[Join, Tag("join")]
    | Annotated[Compute, Tag("compute")]
    | Annotated[Sql, Tag("sql")]
    | Annotated[Lookup, Tag("lookup")]
    | Annotated[Python, Tag("python")],
    Discriminator(
        _kind, custom_error_type="kind", custom_error_message=f"kind: expected one of {', '.join(ENRICH_KINDS)}"
    ),
]


class Mask(Section):
    """Makes an attribute unreadable before anything is written."""

    path: Path = Field(description="The attribute: email, address.street, phones[*].number, enriched.customer.email.")
    how: Literal["hash", "redact", "truncate", "tokenise", "drop"] = Field(
        description="hash: HMAC-SHA-256, equal values stay equal. tokenise: AES-SIV, which the key's owner can undo. redact: "
        "`text` stands there instead. truncate: the first `keep` characters stay. drop: it is left out."
    )
    text: str = Field("***", description="With redact: what stands there instead.")
    keep: int = Field(4, ge=0, description="With truncate: how many characters stay.")


def _short(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


ENVELOPES_WITH = {
    "numbers": ("plain", "debezium", "cloudevents"),
    "tombstone": ("plain", "debezium"),
    "images": ("debezium",),
    "mode": ("cloudevents",),
}
"""The kinds of envelopes that have a setting."""


class Envelope(Section):
    """The shape of a message."""

    kind: Literal["dynamodb", "plain", "debezium", "cloudevents"] = Field(
        "dynamodb",
        description="dynamodb: as AWS gives it. plain: the item as plain JSON. debezium, cloudevents: as those have it.",
    )
    numbers: Literal["exact", "string"] = Field(
        "exact", description="Numbers in plain JSON: as JSON numbers with all their digits, or as strings."
    )
    tombstone: bool | None = Field(
        None,
        description="plain: a deletion is a tombstone (the default), else the old item. debezium: one follows a "
        "deletion (not by default).",
    )
    images: Literal["plain", "document"] = Field(
        "plain",
        description="debezium: `before` and `after` as plain JSON, or as Confluent's Amazon DynamoDB CDC connector has them: "
        '`{"document": "..."}`, the typed JSON as one text.',
    )
    mode: Literal["binary", "structured"] = Field(
        "binary", description="cloudevents: the attributes in headers, or all in one JSON object."
    )

    @model_validator(mode="after")
    def _settings_are_of_the_kind(self) -> Envelope:
        for name, kinds in ENVELOPES_WITH.items():
            if name in self.model_fields_set and self.kind not in kinds:
                raise ValueError(f"{name}: the envelope {self.kind} has no such setting, only {', '.join(kinds)}")
        return self


FormatKind = Literal["json", "avro", "protobuf", "json-schema"]


class Format(Section):
    """How messages are encoded."""

    kind: FormatKind = Field("json", description="json, or a format with its schemas in the schema registry.")
    on_conflict: Literal["reject", "widen"] = Field(
        "reject",
        description="When a value does not fit its attribute's schema: a dead letter, or from then on a wider type.",
    )
    schemas: bool = Field(
        False,
        description='json: each message is {"schema": ..., "payload": ...}, as Kafka Connect reads and writes it with '
        "schemas.enable=true.",
    )
    former_names: Literal["keep", "migrate"] = Field(
        "keep",
        description="debezium, with a schema registry: whether a subject whose records an earlier version has named keeps "
        "these names, or gets those that Debezium gives (migrate).",
    )

    @model_validator(mode="after")
    def _settings_are_of_the_kind(self) -> Format:
        if self.schemas and self.kind != "json":
            raise ValueError(f"schemas: only json has them in its messages, {self.kind} has them in the registry")
        if self.kind == "json" and "former_names" in self.model_fields_set:
            raise ValueError("former_names: json has no subjects in a schema registry")
        return self

    @property
    def is_registered(self) -> bool:
        """Whether its schemas are in the schema registry."""
        return self.kind != "json"

    @property
    def has_schema(self) -> bool:
        """Whether readers are told a schema, by the registry or in each message."""
        return self.is_registered or self.schemas


class KeyFormat(Section):
    """How the keys of messages are encoded."""

    kind: FormatKind = Field(
        "json",
        description="json: the item key, in DynamoDB's typed JSON. Else a struct of the key attributes, with its schema in the "
        "schema registry.",
    )
    schemas: bool = Field(
        False,
        description='json: a struct of the key attributes, as {"schema": ..., "payload": ...}, which Kafka Connect reads with '
        "schemas.enable=true.",
    )

    @model_validator(mode="after")
    def _settings_are_of_the_kind(self) -> KeyFormat:
        if self.schemas and self.kind != "json":
            raise ValueError(f"schemas: only json has them in its messages, {self.kind} has them in the registry")
        return self

    @property
    def is_registered(self) -> bool:
        """Whether its schemas are in the schema registry."""
        return self.kind != "json"

    @property
    def is_struct(self) -> bool:
        """Whether a key is a struct, not the item key."""
        return self.is_registered or self.schemas


class Route(Section):
    """Where changes go."""

    sink: SinkName = Field(
        description="The sink topic is <prefix>.sink.<sink>; {table}, {op} and {source} are filled in."
    )
    where: Where | None = Field(
        None, description="A pattern as in Lambda event filtering, or an expression in CEL; without it, everything."
    )


def _routes(value: Any) -> Any:
    listed = [value] if isinstance(value, (str, Mapping)) else value
    return (
        [{"sink": one} if isinstance(one, str) else one for one in listed]
        if isinstance(listed, list | tuple)
        else listed
    )


class Flow(Section):
    """A named path from raw to sink topics: filter, enrich, shape, route."""

    name: Name = Field(description="Its name, of its own.")
    tables: tuple[Name, ...] = Field(
        (), validation_alias=AliasChoices("from", "tables"), description="Tables; empty: all."
    )
    where: Where | None = Field(
        None,
        description="A pattern as in Lambda event filtering, or an expression in CEL: what does not match is left out.",
    )
    enrich: tuple[EnrichSettings, ...] = Field((), description="What is added, step by step: see [[flows.enrich]].")
    select: tuple[Path, ...] = Field(
        (), description="The attributes that stay; empty: all. Key attributes always stay in the key."
    )
    drop: tuple[Path, ...] = Field((), description="Attributes that are left out.")
    rename: dict[NamePath, NewName] = Field(
        default_factory=dict, description="New names of attributes, by their old ones."
    )
    mask: tuple[Mask, ...] = Field((), description="Attributes that nobody downstream may read: see [[flows.mask]].")
    mask_key: KeyUri | None = Field(
        None,
        description="The key of the masks: file:PATH of 32 random bytes in base64, env:NAME of a variable that holds them, or "
        "kms:PATH of a data key that AWS KMS has encrypted.",
    )
    through: Name | None = Field(
        None, description="Also writes what the steps made to <prefix>.enriched.<through>, before it is routed."
    )
    to: Annotated[tuple[Route, ...], BeforeValidator(_routes)] = Field(
        min_length=1, description="Sinks, or rules that lead to sinks: see [[flows.to]]."
    )
    match: Literal["first", "all"] = Field(
        "first", description="Whether a change goes to the first sink whose `where` matches, or to all of them."
    )
    otherwise: SinkName | None = Field(
        None, description="The sink of what no `where` matches; without it, it is left out."
    )
    on_leave: Literal["delete", "tombstone", "ignore"] | None = Field(
        None,
        description="What a sink gets when an item no longer matches what leads there. delete: what the envelope writes for a "
        "deletion. tombstone: the key and null. ignore: nothing. The default is delete with several sinks, ignore with one.",
    )
    envelope: Annotated[Envelope, BeforeValidator(_short)] = Envelope()
    format: Annotated[Format, BeforeValidator(_short)] = Format()
    key_format: Annotated[KeyFormat, BeforeValidator(_short)] = KeyFormat()
    order: Literal["loose", "strict"] = Field(
        "loose",
        description="strict: after a rejected change, the later ones of its item wait until it was retried or skipped.",
    )
    reject_limit: float = Field(
        0.5,
        gt=0,
        le=1,
        description="The share of the last 1,000 changes that a flow may reject; beyond it, it stops instead of filling the "
        "dead letters.",
    )

    @model_validator(mode="after")
    def _masks_have_a_key(self) -> Flow:
        if self.mask and self.mask_key is None:
            raise ValueError(
                "mask_key: masks need a key, their dead letters are encrypted with it; headwater flows new-key FILE makes one"
            )
        return self

    @model_validator(mode="after")
    def _publishes_no_secrets(self, info: ValidationInfo) -> Flow:
        if (info.context or {}).get(PUBLISHED):
            return self
        for n, step in enumerate(self.enrich):
            if isinstance(step, Lookup):
                for problem in (*secrets_in_url(step.url or ""), *secrets_in_headers(step.headers)):
                    raise ValueError(f"enrich.{n}: the flow {self.name}, lookup {step.into}: {problem}")
        return self

    @model_validator(mode="after")
    def _masks_reach_what_is_added(self) -> Flow:
        if any(isinstance(step, Sql | Python) for step in self.enrich):
            return self  # what those add nobody knows
        added = {step.into for step in self.enrich if not isinstance(step, Sql | Python)}
        for n, mask in enumerate(self.mask):
            path = parse(mask.path)
            if is_added(path) and not any(name in added for name, _ in readings(path[1:])):
                known = ", ".join(f"enriched.{name}" for name in sorted(added)) or "nothing"
                raise ValueError(f"mask.{n}.path: {mask.path} is not among what the steps add ({known})")
        return self

    @model_validator(mode="after")
    def _sends_known_tables_again(self) -> Flow:
        for step in self.enrich:
            if isinstance(step, Join) and step.is_partitioned and step.re_emits and not self.tables:
                raise ValueError(
                    f'join: on_reference_change = "re-emit" with the partitioned table {step.table} needs '
                    "from = the tables whose changes are sent again"
                )
        return self

    @model_validator(mode="after")
    def _every_route_can_be_reached(self) -> Flow:
        whole = [n for n, route in enumerate(self.to) if route.where is None]
        if self.match == "first" and whole and whole[0] < len(self.to) - 1:
            raise ValueError(
                f'to.{whole[0]} takes everything, so to.{whole[0] + 1} never gets anything: put it last, or match = "all"'
            )
        if whole and self.otherwise is not None:
            raise ValueError(f"otherwise: never gets anything, to.{whole[0]} takes everything")
        return self

    @model_validator(mode="after")
    def _something_can_leave(self) -> Flow:
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
    def _formats_have_documents(self) -> Flow:
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
        asked = (table for step in self.enrich if isinstance(step, Sql) for table in step.tables)
        return list(dict.fromkeys([*self.joined, *asked]))

    @property
    def joined(self) -> list[str]:
        """The tables that are joined by a foreign key."""
        return [step.reference for step in self.enrich if isinstance(step, Join) and not step.is_partitioned]

    @property
    def partitioned(self) -> list[str]:
        """The reference tables that are kept by partition."""
        joins = [step for step in self.enrich if isinstance(step, Join) and step.is_partitioned]
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
