"""Lists on the pages are complete: destinations, stages of dead letters, causes of gaps, metrics, topics; and the reference
of the command line shows what each command takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from prometheus_client.metrics import MetricWrapperBase
from support.paths import ROOT

from headwater.cli import app
from headwater.commands.dlq import STAGES
from headwater.groups import commands_of
from models import dead_letter
from models.gap import Cause
from pipeline.metrics.worker_metrics import Metrics
from pipeline.replay.run import STAGE as REPLAY
from pipeline.runtime.entry_points import known_agents
from pipeline.settings.root import Settings
from pipeline.topics.names import Topics

PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if not {"decisions", "benchmarks"} & set(page.parts) and page.name not in {"CHANGELOG.md", "reliability.md"}
}
"""Pages that say how it is; the others say how it was at some time."""
DESTINATIONS = {"lake", "mirror", "replica", "pubsub"}
NAMES = {"lake": r"\blakes?\b", "mirror": r"\bmirrors?\b", "replica": r"\breplicas?\b", "pubsub": r"pub/?sub"}


def test_the_destinations_are_agents() -> None:
    assert set(known_agents()) == {"ingest", "deduplicate", "transform"} | DESTINATIONS


def paragraphs() -> Iterator[tuple[str, str]]:
    for page, text in PAGES.items():
        for paragraph in re.split(r"\n\n|\n(?=[-|#]|\d\. )|```", text):
            yield page, paragraph.replace("\n", " ")


LISTING = [
    (page, one)
    for page, one in paragraphs()
    if all(re.search(NAMES[name], one, re.IGNORECASE) for name in ("mirror", "replica"))
    if "demo" not in one  # it runs a mirror and a replica, and publishes nothing
]


@pytest.mark.parametrize(("page", "paragraph"), LISTING, ids=[f"{page}: {one[:40]}" for page, one in LISTING])
def test_a_list_that_has_mirror_and_replica_does_not_stop_there(page: str, paragraph: str) -> None:
    assert re.search(NAMES["pubsub"], paragraph, re.IGNORECASE), f"{page}: {paragraph}"


def test_the_picture_has_every_destination() -> None:
    picture = (ROOT / "docs/images/flow.svg").read_text(encoding="utf-8")
    assert all(re.search(pattern, picture, re.IGNORECASE) for pattern in NAMES.values())


def listed(page: str, row: str) -> set[str]:
    """What stands as code in the second column of a row of a table."""
    (line,) = [line for line in PAGES[page].splitlines() if line.startswith(f"| `{row}`")]
    return set(re.findall(r"`([^`]+)`", line.split(" | ")[1]))


def test_the_stages_of_dead_letters_are_the_agents_and_replays() -> None:
    stages = {*known_agents(), REPLAY}
    assert listed("docs/how-to/dead-letters.md", "__connect.errors.stage") == stages
    assert set(STAGES) == stages


def test_each_cause_of_a_gap_is_explained() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| [A-Z]", PAGES["docs/how-to/capture-a-table.md"], re.MULTILINE)
    assert set(get_args(Cause)) == set(rows)


def test_metrics_on_the_pages_exist() -> None:
    metrics = [var for var in vars(Metrics()).values() if isinstance(var, MetricWrapperBase)]
    known = {name for metric in metrics for name in (metric._name, f"{metric._name}_total")}
    for page, text in PAGES.items():
        assert set(re.findall(r"\bheadwater_[a-z_]+\b", text)) - known == set(), page


TOPIC = re.compile(r"`headwater\.([a-z][a-z-]*(?:\.[\w<*-]+)?)")
NOT_TOPICS = DESTINATIONS | {"groups", "testing", "toml"}
"""Groups of destinations, attributes, modules, files."""


def test_topics_on_the_pages_exist() -> None:
    names = Topics(Settings(_env_file=None)).all()
    headers = [var for var in vars(dead_letter).values() if isinstance(var, str) and var.startswith("headwater.")]
    known = {re.split("[._]", name)[1] for name in [*headers, *(topic.name for topic in names)]}
    known |= {"enriched", "reference", "sink"}  # of the flows that there are
    for page, text in PAGES.items():
        named = {name.partition(".")[0] for name in TOPIC.findall(text)}
        assert named - known - NOT_TOPICS == set(), page


# -- the reference of the command line --------------------------------------------------------------------------------


def walk(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name, inner in commands_of(command).items():
        yield from walk(inner, *path, name)


EVERY = dict(walk(typer.main.get_command(app), "headwater"))
KINDS = {str: "text", int: "number", float: "number", Path: "path"}


def section(path: str) -> str:
    return PAGES["docs/reference/cli.md"].partition(f"\n## {path}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("path", EVERY)
def test_the_usage_shows_what_must_be_given_and_what_may_be_repeated(path: str) -> None:
    usage = section(path).split("```")[1]
    for parameter in EVERY[path].params:
        name = (parameter.metavar or parameter.name).upper()
        if parameter.param_type_name == "argument":
            form = name if parameter.required else f"[{name}]"
            assert f" {form}{'...' if parameter.nargs == -1 else ''}" in usage
            assert (f"{name}..." in usage or f"[{name}]..." in usage) == (parameter.nargs == -1)
        else:
            assert (f"{parameter.opts[0]} {name}" in usage) == parameter.required


@pytest.mark.parametrize("path", EVERY)
def test_the_reference_shows_each_value_by_its_type(path: str) -> None:
    rows = [line.split(" | ") for line in section(path).splitlines() if line.startswith("| `")]
    assert len(rows) == len([param for param in EVERY[path].params if not param.hidden])
    for row, parameter in zip(rows, EVERY[path].params, strict=True):
        shown = row[1].strip()
        annotation = parameter.type_descriptor.annotation
        inner = (get_args(annotation) or (annotation,))[0] if "list" in str(annotation) else annotation
        if getattr(parameter, "is_flag", False):
            assert shown == ""
        elif choices := parameter.type_descriptor.choices:
            assert re.findall(r"`([^`]+)`", shown) == list(choices)
        else:
            assert re.match(r"\w+", shown)[0] == KINDS[inner]  # type: ignore[index]
        assert shown.endswith("may be repeated") == bool(getattr(parameter, "multiple", False))
        for word, limit in (("from", parameter.min), ("to", parameter.max)):
            assert (f" {word} " in shown) == (limit is not None)
            assert limit is None or f" {word} {limit:,}" in shown
