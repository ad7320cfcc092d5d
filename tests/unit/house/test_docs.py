"""What the pages say is true: commands, settings, links, policies, the map of the flow, the pages made from the code."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from conftest import Headwater
from support.paths import ROOT

import agents
from headwater.cli import app as cli
from headwater.groups import commands_of
from headwater.testing import change
from pipeline.flows import golden
from pipeline.flows.compile import compile_flow, onlooking
from pipeline.runtime.app import create_app
from pipeline.runtime.entry_points import AGENTS
from pipeline.runtime.faust_app import App
from pipeline.settings.load import NOT_SETTINGS, load
from pipeline.settings.root import ENV_PREFIX, Settings
from pipeline.settings.sources import KINDS, DynamoDBStreamSettings
from pipeline.steps.filter import compile_pattern
from pipeline.topics.names import Topics

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TEXT = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
AGENT_NAMES = {point.name for point in entry_points(group=AGENTS)}
AWS = {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
"""So that building the app asks nobody."""
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[tuple[str, str]]:
    """The code blocks of all pages in these languages, each with the page and the line where it begins."""
    found = []
    for page, text in TEXT.items():
        for match in FENCE.finditer(text):
            if match[2] in languages:
                lines = [line.removeprefix(match[1]) for line in match[3].splitlines()]
                found.append((f"{page}:{text.count(chr(10), 0, match.start()) + 2}", "\n".join(lines)))
    return found


def prose(text: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text)


def typed(*programs: str) -> list[tuple[str, list[str]]]:
    """What the pages say to type: page, and the words from the program on."""
    lines = [
        (page, line) for page, block in blocks("", "bash", "sh") for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += [(page, code) for page, text in TEXT.items() for code in re.findall(r"`([^`\n]+)`", prose(text))]
    lines += [("Procfile", line.partition(": ")[2]) for line in (ROOT / "Procfile").read_text().splitlines()]
    found = []
    for page, line in lines:
        if page.startswith("docs/reference/"):  # made from the code; `[OPTIONS]` stands there
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe: no command
            continue
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if len(words) > 1 and Path(words[0]).name in programs:
            found.append((page, [Path(words[0]).name, *words[1:]]))
    return found


def load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but those of the test, and boto3 has all that it needs."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


# -- commands ---------------------------------------------------------------------------------------------------------


def wrong(words: list[str]) -> str:
    """What is wrong with a command line, or ''."""
    command: Any = typer.main.get_command(cli)
    options = {name: p for p in command.params for name in [*p.opts, *p.secondary_opts]}
    rest = iter(words[1:])
    for word in rest:
        if word in {"|", ">", "&&", ";"}:
            return ""
        if word == "...":
            continue
        name = word.partition("=")[0]
        if name.startswith("-") and name != "-":
            if name not in {*options, "--help"}:
                return f"no option {name}"
            if name in options and not options[name].is_flag and "=" not in word and next(rest, None) is None:
                return f"{name} needs a value"
        elif inner := commands_of(command):
            if name not in inner:
                return f"no command {name}"
            command = inner[name]
            options = {name: p for p in command.params for name in [*p.opts, *p.secondary_opts]}
        elif not any(p.param_type_name == "argument" for p in command.params):
            return f"{name} is one word too many"
        elif command.name == "run" and name.partition(".")[0] not in AGENT_NAMES and not name.isupper():
            return f"no agent {name}"
    return ""


@pytest.mark.parametrize(
    ("page", "words"), typed("headwater"), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_commands_on_the_pages_exist_with_their_options(page: str, words: list[str]) -> None:
    assert wrong(words) == "", f"{page}: {' '.join(words)}"


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    assert wrong(["headwater", "local", "up", "--brokers", "kafka"]) == "no option --brokers"
    assert wrong(["headwater", "replays"]) == "no command replays"
    assert wrong(["headwater", "status", "orders"]) == "orders is one word too many"
    assert wrong(["headwater", "run", "ingets"]) == "no agent ingets"
    assert wrong(["headwater", "demo", "--seed"]) == "--seed needs a value"


def test_what_the_pages_make_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for _, words in typed("make") for word in words[1:2] if re.fullmatch(r"[a-z]+", word)}
    assert {"demo", "test", "setup", "check"} <= named <= targets


def test_variables_on_the_pages_are_settings() -> None:
    known = set(re.findall(r"`(HEADWATER_\w+)`", load_script("docs/reference/generate.py").settings_page()))
    for page, text in TEXT.items():
        named = set(re.findall(r"\bHEADWATER_[A-Z_]+[A-Z]\b", text))
        assert named - known - NOT_SETTINGS - {"HEADWATER_PREFX"} == set(), page


# -- settings, policies, data -----------------------------------------------------------------------------------------

SETTINGS = [(page, block) for page, block in blocks("toml") if "project" not in tomllib.loads(block)]


@pytest.mark.parametrize(("page", "block"), SETTINGS, ids=[page for page, _ in SETTINGS])
def test_settings_files_on_the_pages_load(
    page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "page.toml"
    file.write_text(block)
    monkeypatch.setenv("HEADWATER_CONFIG", str(file))
    settings = load()
    for flow in settings.flows:
        compile_flow(flow, onlooking([flow]))
    captured = {
        table for source in settings.sources if isinstance(source, DynamoDBStreamSettings) for table in source.tables
    }
    joined = {table for flow in settings.flows for table in [*flow.references, *flow.partitioned]}
    assert captured >= {table for table in joined if not table.startswith("topic:")}, page


PATTERNS = re.findall(r"^\| `(\{.+?\})` \|", TEXT["docs/how-to/filter-changes.md"], re.MULTILINE)
ENTRIES = re.findall(r"^\| [^|]+ \| `(\{.+?\})` \|", TEXT["docs/how-to/filter-changes.md"], re.MULTILINE)


def image(**attributes: Any) -> dict[str, Any]:
    return {"dynamodb": {"NewImage": attributes}}


TRIED: dict[str, tuple[Any, Any]] = {
    '{ eventName = ["REMOVE"] }': ({"eventName": "REMOVE"}, {"eventName": "INSERT"}),
    '{ dynamodb = { NewImage = { total = { N = [{ numeric = [">", 5] }] } } } }': (
        image(total={"N": "5.1"}),
        image(total={"N": "5"}),
    ),
    "{ dynamodb = { NewImage = { gift = { BOOL = [true] } } } }": (image(gift={"BOOL": True}), image()),
    '{ userIdentity = { type = ["Service"] } }': ({"userIdentity": {"type": "Service"}}, {}),
    '{ prefix = "eu-" }': ("eu-1", "EU-1"),
    '{ equals-ignore-case = "paid" }': ("PAID", "unpaid"),
    '{ wildcard = "dir/*.png" }': ("dir/a.png", "dir/a.jpg"),
    '{ numeric = [">", 0, "<=", 5] }': (5, 0),
    '{ cidr = "10.0.0.0/24" }': ("10.0.0.9", "10.0.1.9"),
    "{ exists = true }": ("x", []),
    '{ anything-but = ["open", "lost"] }': ("paid", "lost"),
}
"""By pattern, and by entry of one: what it matches, and what it does not."""


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_on_the_pages_match_what_they_say(pattern: str) -> None:
    where = tomllib.loads(f"where = {pattern}")["where"]
    flow = Settings(flows=({"name": "f", "where": where, "to": [{"sink": "s"}]},)).flows[0]
    assert compile_flow(flow, onlooking([flow])).where is not None
    matches = compile_pattern(where, dynamodb=True)
    assert [matches(event) for event in TRIED[pattern]] == [True, False]


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_of_patterns_on_the_page_match_what_they_say(entry: str) -> None:
    matches = compile_pattern({"a": [tomllib.loads(f"entry = {entry}")["entry"]]})
    assert [matches({"a": value}) for value in TRIED[entry]] == [True, False]


def golden_files() -> Iterator[tuple[str, str, str]]:
    """The golden files on the pages: the page and line, the settings that stand before, the file."""
    for page, text in TEXT.items():
        settings = ""
        for match in FENCE.finditer(text):
            if match[2] == "toml":
                settings = match[3]
            elif match[2] == "json" and {"event", "expect"} <= json.loads(match[3]).keys():
                yield f"{page}:{text.count(chr(10), 0, match.start()) + 2}", settings, match[3]


GOLDEN = list(golden_files())


def test_every_step_that_needs_no_code_or_key_has_a_golden_file() -> None:
    pages = {Path(page.partition(":")[0]).stem for page, *_ in GOLDEN}
    steps = {"join-tables", "enrich-by-lookup", "compute-attributes", "enrich-by-sql", "shape-items", "route-changes"}
    assert pages >= steps | {"choose-an-envelope", "test-flows"}


@pytest.mark.parametrize(("page", "settings", "content"), GOLDEN, ids=[page for page, *_ in GOLDEN])
def test_golden_files_on_the_pages_are_what_the_flows_make(
    page: str, settings: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "headwater.toml").write_text(settings)
    (tmp_path / "case.json").write_text(content)
    monkeypatch.setenv("HEADWATER_CONFIG", str(tmp_path / "headwater.toml"))
    assert golden.check(tmp_path / "case.json", load()).differences == [], page


def test_properties_in_the_environment_are_laid_over_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = [
        block
        for page, block in SETTINGS
        if page.startswith("docs/how-to/run-on-confluent-cloud.md") and "[kafka.properties]" in block
    ]
    export = re.search(
        r"^export (HEADWATER_KAFKA__PROPERTIES)='(.*)'$", TEXT["docs/how-to/run-on-confluent-cloud.md"], re.MULTILINE
    )
    assert export is not None
    (tmp_path / "headwater.toml").write_text(file)
    monkeypatch.setenv(export[1], export[2])
    properties = load().kafka.properties
    assert properties["sasl.password"] == "THE-SECRET"
    assert properties["sasl.username"] == "THE-KEY"


@pytest.mark.parametrize(("page", "block"), blocks("json"), ids=lambda value: value[:40])
def test_json_on_the_pages_is_json(page: str, block: str) -> None:
    assert json.loads(block), page


NOT_THERE = ("docs/how-to/read-the-lake.md",)
"""Pages whose code needs what is not here: a lake that was written."""


@pytest.mark.parametrize(("page", "block"), blocks("python"), ids=lambda value: value[:40])
def test_python_on_the_pages_runs(page: str, block: str, tmp_path: Path) -> None:
    assert ast.parse(block).body, page
    if page.startswith(NOT_THERE):
        return
    (tmp_path / "page.py").write_text(block)
    found = runpy.run_path(str(tmp_path / "page.py"))
    for name, test in found.items():
        if name.startswith("test_"):
            test()


def test_the_functions_of_the_page_are_called_by_its_flow(headwater: Headwater, tmp_path: Path) -> None:
    page = TEXT["docs/how-to/enrich-in-python.md"]
    (module,) = [block[3] for block in FENCE.finditer(page) if "batch=True" in block[3]]
    (settings,) = [block[3] for block in FENCE.finditer(page) if block[3].startswith("modules = ")]
    name = tomllib.loads(settings)["modules"][0]
    (tmp_path / f"{name}.py").write_text(module)
    (tmp_path / "headwater.toml").write_text(settings)
    order = change("orders", new={"order_id": "o-1", "total": 100})
    (tmp_path / "event.json").write_text(json.dumps(order))
    done = headwater("explain", "event.json", "--json")
    assert done.returncode == 0, done.stderr
    ((message,),) = [flow["messages"] for flow in json.loads(done.stdout)]
    assert message["value"]["enriched"] == {"with_vat": {"N": "121"}}


def test_the_iam_policy_allows_what_the_code_calls_and_no_more() -> None:
    (policy,) = [json.loads(block) for page, block in blocks("json") if page.startswith("docs/how-to/run-on-aws.md")]
    allowed: set[str] = set()
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        action = statement["Action"]
        allowed |= {action} if isinstance(action, str) else set(action)
    source = (ROOT / "pipeline/sources/dynamodb/streams.py").read_text()
    calls = re.findall(r"self\._(?:tables|streams)\.(?!get_paginator|meta)([a-z_]+)\(", source)
    reads = {f"dynamodb:{call.title().replace('_', '')}" for call in calls}
    assert reads == {
        f"dynamodb:{name}" for name in ("DescribeTable", "DescribeStream", "GetShardIterator", "GetRecords")
    }
    scanner = (ROOT / "pipeline/sources/snapshots/scan.py").read_text()
    assert set(re.findall(r"self\._client\.(?!meta)([a-z_]+)\(", scanner)) == {"describe_table", "scan"}
    listing = {"dynamodb:ListTables", "tag:GetResources"}  # for patterns and tags
    assert re.findall(r'get_paginator\("(\w+)"\)', source) == ["list_tables", "get_resources"]
    assert allowed == reads | listing | {"dynamodb:Scan"} | {
        f"s3:{name}" for name in ("PutObject", "AbortMultipartUpload", "GetObject", "ListBucket")
    }


# -- links, pages made from the code ----------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links() -> Iterator[tuple[str, str]]:
    for page, text in TEXT.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
            if not re.match(r"[a-z]+:", target):
                yield page, target


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_links_lead_somewhere(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    there = (ROOT / page).parent / path if path else ROOT / page
    assert there.exists()
    if anchor:
        assert anchor in anchors(there.read_text(encoding="utf-8"))


def test_every_page_can_be_reached_from_the_readme() -> None:
    listed = {str((ROOT / page).parent.joinpath(target).resolve()) for page, target in links() if page == "README.md"}
    for page in PAGES:
        assert page.name == "README.md" or {str(page), str(page.parent)} & listed, page


def test_the_map_of_contributing_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["map.py", "--check"])
    assert load_script("docs/map.py").main() == 0, "try: make docs"


def test_the_reference_is_what_the_code_says() -> None:
    stale = load_script("docs/reference/generate.py").stale()
    assert stale == [], "try: python docs/reference/generate.py"


def test_the_reference_does_not_depend_on_what_is_set_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADWATER_PREFIX", "other")
    (tmp_path / "headwater.toml").write_text("partitions = 3\n")
    (tmp_path / ".env").write_text("HEADWATER_DEDUP_WINDOW=60\n")
    assert load_script("docs/reference/generate.py").stale() == []
    assert os.environ["HEADWATER_PREFIX"] == "other"


def test_the_picture_is_what_its_script_draws() -> None:
    picture = load_script("docs/images/flow.py")
    assert picture.TARGET.read_text(encoding="utf-8") == picture.draw()


# -- the map of the flow ----------------------------------------------------------------------------------------------

Mapped = tuple[str, tuple[str, ...], str]
"""What the map says of an agent: its input, its outputs, its file."""


def the_map() -> dict[str, Mapped]:
    """Read the docstring of agents/__init__.py: `name  input  -> output, output  file`."""
    found: dict[str, Mapped] = {}
    for line in (agents.__doc__ or "").splitlines():
        if match := re.fullmatch(r" +(\w+) +(\S+) +-> (.+?) +(agents/\w+\.py)", line):
            found[match[1]] = match[2], tuple(match[3].split(", ")), match[4]
    return found


MAP = the_map()


DESTINATIONS: dict[str, dict[str, Any]] = {
    "mirror": {"mirrors": ({"bootstrap_servers": "127.0.0.1:9093"},)},
    "replica": {"replicas": ({"sinks": ("orders-all",)},)},
    "pubsub": {"pubsubs": ({"project": "p"},)},
}
"""Agents that have a worker of their own, and the settings that they need."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> App:
    """The app with the settings of the demo and all agents that may share a worker; nothing connects."""
    return build(tmp_path_factory.mktemp("state"), AGENT_NAMES - DESTINATIONS.keys())


def build(state: Path, names: Iterable[str], **settings: Any) -> App:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
            patch.delenv(name)
        for variable, value in AWS.items():
            patch.setenv(variable, value)
        patch.setenv("HEADWATER_CONFIG", str(ROOT / "headwater/lab/demo.toml"))
        return create_app(load(state_dir=state, agents=tuple(sorted(names)), **settings))


def matches(name: str, topic: str, prefix: str) -> bool:
    """Whether a topic, or a source's name, is meant by a name of the map: `<p>.sink.*`, `@<kind>`."""
    if name.startswith("@"):
        return name == "@<kind>" and re.fullmatch(rf"@({'|'.join(KINDS)})-\d+", topic) is not None
    return re.fullmatch(re.escape(name.replace("<p>", prefix)).replace(r"\*", ".+"), topic) is not None


def used_by(file: str) -> set[str]:
    """The topics that an agent's module names: the attributes of `topics` in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Attribute):
            of = node.value
            if (of.id if isinstance(of, ast.Name) else getattr(of, "attr", "")).lstrip("_") == "topics":
                found.add(node.attr)
    return found


def test_the_map_has_every_agent_and_no_other() -> None:
    assert set(MAP) == AGENT_NAMES


@pytest.mark.parametrize("name", sorted(AGENT_NAMES))
def test_an_agent_is_in_the_file_that_the_map_names(name: str) -> None:
    (point,) = entry_points(group=AGENTS, name=name)
    assert point.value == f"{MAP[name][2].removesuffix('.py').replace('/', '.')}:attach"
    assert (ROOT / MAP[name][2]).is_file()


@pytest.mark.parametrize("name", sorted(AGENT_NAMES))
def test_an_agent_reads_what_the_map_says(name: str, built: App, tmp_path: Path) -> None:
    if name in DESTINATIONS:
        built = build(tmp_path, [name], **DESTINATIONS[name])
    (agent,) = [agent for agent in built.agents.values() if name in agent.name.split(".")[-1:] or agent.name == name]
    topics: Any = agent.channel
    assert topics.topics
    prefix = built.worker.settings.prefix
    assert all(any(matches(read, topic, prefix) for read in MAP[name][0].split("+")) for topic in topics.topics)


@pytest.mark.parametrize("name", sorted(AGENT_NAMES))
def test_an_agent_writes_where_the_map_says(name: str) -> None:
    _, outputs, file = MAP[name]
    attributes = {
        "<p>.sink.*": {"sink", "sinks", "lake_sinks", "sinks_of"},
        "<p>.reference.*": {"references", "reference"},
        "<p>.enriched.*": {"enriched"},
    }
    named = (*MAP[name][0].split("+"), *outputs)
    said = [attributes.get(topic, {topic.removeprefix("<p>.").replace("-", "_")}) for topic in named]
    used = used_by(file) - {"gaps", "dead_letter"}  # named below the map
    if name == "transform":  # what it does is a step of its own
        parts = ("runner", "references", "output", "held")
        used |= set().union(*(used_by(f"pipeline/flows/{part}.py") for part in parts)) - {"all", "dead_letter"}
    assert used <= set().union(*said)
    topics = [names for names in said if not any(" " in n or n.startswith("@") for n in names)]
    assert all(names & used for names in topics)


def test_every_topic_is_on_the_map(built: App) -> None:
    prefix = built.worker.settings.prefix
    named = [topic for read, written, _ in MAP.values() for topic in (*read.split("+"), *written)]
    named += re.findall(r"<p>\.[\w-]+", (agents.__doc__ or "").rpartition("\n\n")[2])
    for topic in Topics(built.worker.settings).all():
        assert any(matches(name, topic.name, prefix) for name in named), topic.name
    for name in named:
        if name.startswith("<p>") and name != "<p>.enriched.*":  # no flow of the demo publishes one
            assert any(matches(name, topic.name, prefix) for topic in Topics(built.worker.settings).all()), name


def test_the_policies_for_kinesis_allow_what_the_code_calls_and_no_more() -> None:
    policy, pushing = [json.loads(block) for page, block in blocks("json") if "capture-a-kinesis-stream" in page]
    reading, listing = policy["Statement"]

    def called(*files: str) -> set[str]:
        source = "".join((ROOT / "pipeline/sources" / file).read_text() for file in files)
        assert re.findall(r'get_paginator\("(\w+)"\)', source) in ([], ["list_streams"])
        calls = re.findall(r"self\._(?:streams|subscriber)\.(?!get_paginator|meta)([a-z_]+)\(", source)
        return {f"kinesis:{call.title().replace('_', '')}" for call in calls}

    assert called("kinesis/api.py") == set(reading["Action"])
    assert called("kinesis/fan_out.py", "kinesis/consumers.py") == set(pushing["Action"])
    assert listing["Action"] == "kinesis:ListStreams"
