"""The settings of what a flow does to a change: `enrich` steps and `mask`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from pipeline.settings.base import Name, OnePath, Path, Section, formed, of_one

PLACE = re.compile(r"\{([^{}]+)\}")
"""Matches what is replaced in a url by an attribute of the change."""


def _places(url: str) -> str:
    if odd := re.search(r"[{}]", PLACE.sub("", url)):
        raise ValueError(
            f"there is a {odd[0]} that is not part of an {{attribute}}; in the url itself it is %7B or %7D"
        )
    for place in PLACE.findall(url):
        of_one(place)
    return url


Url = Annotated[str, formed(r"https?://[^/].*", "http://... or https://..."), AfterValidator(_places)]
"""Where a service is asked, with the paths of attributes in braces."""
Condition: TypeAlias = dict[str, Any] | str
"""A pattern, or an expression in CEL."""
TOPIC = "topic:"
"""What the name of a reference begins with that is a topic."""
TABLE_OR_TOPIC = formed(rf"(?:{TOPIC})?[A-Za-z0-9._-]+", f"the name of a table, or {TOPIC} and that of a topic")
PARTITIONED = "partitioned:"
"""What the name of a reference begins with that is a table of which a worker keeps the items of its partitions."""
KeyUri = Annotated[str, formed(r"(?:file|kms):.+|env:\w+", "file:PATH, env:NAME of a variable, or kms:PATH")]


class JoinSettings(Section):
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
        description="What happens to a change when there is no such item: null is added (a left join), the change is left out "
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
    def _one_of_two(self) -> JoinSettings:
        if (self.table is None) == (self.topic is None):
            raise ValueError("join: name a table or a topic")
        return self

    @model_validator(mode="after")
    def _joined_by_its_state(self) -> JoinSettings:
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


class ComputeSettings(Section):
    """Adds what an expression in CEL gives."""

    kind: Literal["compute"] = Field(description="The kind of the step.")
    expression: str = Field(
        alias="as", min_length=1, description="An expression in CEL; it sees what `where` sees, and `enriched`."
    )
    into: str = Field(min_length=1, description="Under which name its value is added to the change.")


class SqlSettings(Section):
    """Adds what a query gives, run by DuckDB over the changes of a batch."""

    kind: Literal["sql"] = Field(description="The kind of the step.")
    query: str = Field(
        min_length=1,
        description="Selects `id` (of the relation `changes`) and more columns: they are added to the change of this id under "
        "their names. A change whose id is not in the result is left out.",
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


class LookupSettings(Section):
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
        description="HTTP headers. A secret is never in plain text: env:NAME is a variable of the worker's environment, "
        "file:/path a file that it reads, ${NAME} a variable within a value.",
        repr=False,
    )
    ttl: float = Field(300.0, ge=0, description="Seconds for which an answer is kept.")
    missing_ttl: float = Field(30.0, ge=0, description="Seconds for which a missing answer (404, no item) is kept.")
    cache: int = Field(100_000, ge=0, description="Largest number of answers kept.")
    timeout: float = Field(2.0, gt=0, le=10, description="Seconds that one call may take.")
    concurrency: int = Field(8, ge=1, le=64, description="Calls at the same time.")
    on_failure: Literal["retry", "reject", "pass"] = Field(
        "retry",
        description="When it does not answer: try the batch again until it does, make dead letters, or pass the change on with "
        "null and the header lookup_failed.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> LookupSettings:
        if (self.url is None) == (self.table is None):
            raise ValueError("lookup: name a url or a table")
        if self.table is not None and not self.key:
            raise ValueError("lookup: a table needs key = { its key attribute = the change's attribute }")
        return self


class PythonSettings(Section):
    """Calls a function of your own, declared by `@enrich("name")` in a module of `modules`."""

    kind: Literal["python"] = Field(description="The kind of the step.")
    name: str = Field(min_length=1, description="The name that the function was declared with.")


ENRICH_KINDS = ("join", "compute", "sql", "lookup", "python")


def _kind(step: Any) -> Any:
    return step.get("kind") if isinstance(step, Mapping) else getattr(step, "kind", None)


class MaskSettings(Section):
    """Makes an attribute unreadable before anything is written."""

    path: Path = Field(description="The attribute: email, address.street, phones[*].number, enriched.customer.email.")
    how: Literal["hash", "redact", "truncate", "tokenise", "drop"] = Field(
        description="hash: HMAC-SHA-256, equal values stay equal. tokenise: AES-SIV, which the key's owner can undo. redact: "
        "`text` replaces it. truncate: the first `keep` characters stay. drop: it is left out."
    )
    text: str = Field("***", description="With redact: what replaces it.")
    keep: int = Field(4, ge=0, description="With truncate: how many characters stay.")


EnrichSettings: TypeAlias = Annotated[
    Annotated[JoinSettings, Tag("join")]
    | Annotated[ComputeSettings, Tag("compute")]
    | Annotated[SqlSettings, Tag("sql")]
    | Annotated[LookupSettings, Tag("lookup")]
    | Annotated[PythonSettings, Tag("python")],
    Discriminator(
        _kind, custom_error_type="kind", custom_error_message=f"kind: expected one of {', '.join(ENRICH_KINDS)}"
    ),
]
