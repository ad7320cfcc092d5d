"""Write the pages of docs/reference from the code: python docs/reference/generate.py.

With --check it writes nothing and exits 1 when a page is stale, naming it.
"""  # noqa: INP001 - a script

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer
from prometheus_client import Counter, Gauge
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from headwater.cli import app
from headwater.groups import commands_of
from pipeline.metrics.worker_metrics import Metrics
from pipeline.settings.enrich import (
    ComputeSettings,
    JoinSettings,
    LookupSettings,
    MaskSettings,
    PythonSettings,
    SqlSettings,
)
from pipeline.settings.flows import FlowSettings, RouteSettings
from pipeline.settings.formats import EnvelopeSettings, FormatSettings, KeyFormatSettings
from pipeline.settings.kafka import KafkaSettings, RegistrySettings
from pipeline.settings.root import ENV_PREFIX, Settings, WebSettings
from pipeline.settings.sinks import LakeSettings, MirrorSettings, NamedLakeSettings, PubSubSettings, ReplicaSettings
from pipeline.settings.sources import DynamoDBStreamSettings, KinesisSettings
from pipeline.topics.names import Topics

HERE = Path(__file__).parent
NOTE = "<!-- Made by docs/reference/generate.py from the code: do not edit. -->\n\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines) + "\n"


def _cell(words: str) -> str:
    words = words.replace("|", "\\|")
    return words if "`" in words else re.sub(r"<(?=\w)", "&lt;", words)


def code(words: str) -> str:
    """Return words as code; nothing for nothing."""
    return f"`{words}`" if words else ""


# -- settings ---------------------------------------------------------------------------------------------------------

ENRICH: Mapping[str, type[BaseModel]] = {
    "join": JoinSettings,
    "compute": ComputeSettings,
    "sql": SqlSettings,
    "lookup": LookupSettings,
    "python": PythonSettings,
}
SECTIONS: Sequence[tuple[str, str, type[BaseModel]]] = [
    ("Top level", "", Settings),
    ("[kafka]", "kafka", KafkaSettings),
    ("[[sources]] of kind dynamodb-stream", "sources", DynamoDBStreamSettings),
    ("[[sources]] of kind kinesis", "sources", KinesisSettings),
    ("[[flows]]", "flows", FlowSettings),
    *((f'flows: enrich, kind = "{name}"', "flows.enrich", model) for name, model in ENRICH.items()),
    ("flows: mask", "flows.mask", MaskSettings),
    ("flows: to", "flows.to", RouteSettings),
    ("flows: envelope", "flows.envelope", EnvelopeSettings),
    ("flows: format", "flows.format", FormatSettings),
    ("flows: key_format", "flows.key_format", KeyFormatSettings),
    ("[schema_registry]", "schema_registry", RegistrySettings),
    ("[lake]", "lake", LakeSettings),
    ("[[lakes]]", "lakes", NamedLakeSettings),
    ("[[mirrors]]", "mirrors", MirrorSettings),
    ("[[pubsubs]]", "pubsubs", PubSubSettings),
    ("[[replicas]]", "replicas", ReplicaSettings),
    ("[web]", "web", WebSettings),
]
LISTS = ("sources", "flows", "lakes", "mirrors", "pubsubs", "replicas")
"""Lists have one variable for the whole of them, as JSON."""
TYPES: Mapping[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    AwareDatetime: "time with its zone",
    type(None): "",
    Any: "any",
}
INTRODUCTION = f"""# Settings

Read once, when a command starts. What comes first wins: environment, `.env`, the file that `HEADWATER_CONFIG` names or
else `headwater.toml` in the working directory. An unknown key is an error.

In the environment a name is `{ENV_PREFIX}` and the key in capitals, with `__` where the file has a dot. Lists and tables
are JSON there: `HEADWATER_SOURCES='[{{"tables": ["orders"]}}]'`. A table in the environment is laid over the one in the
file, key by key; a list replaces it.

"""


def settings_page() -> str:
    """Return every setting: key, variable, type, default, bounds, meaning."""
    page = [NOTE, INTRODUCTION]
    for title, path, model in SECTIONS:
        page.append(f"## {title}\n\n{model.__doc__}\n\n")
        rows = []
        for name, field in model.model_fields.items():
            key = _key(name, field)
            variable = (
                "" if path.startswith(LISTS) else ENV_PREFIX + f"{path}.{key}".strip(".").upper().replace(".", "__")
            )
            rows.append(
                [code(key), code(variable), _type(field.annotation), _default(field), _bounds(field), _meaning(field)]
            )
        page.append(table(["key", "variable", "type", "default", "bounds", "meaning"], rows))
    return "".join(page)


def _key(name: str, field: FieldInfo) -> str:
    choices = getattr(field.validation_alias, "choices", None)
    return str(choices[0]) if choices else field.alias or name


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, UnionType}:
        return " or ".join(dict.fromkeys(part for part in map(_type, arguments) if part))
    if origin is Literal:
        return " or ".join(code(str(argument)) for argument in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if origin is not None:  # Annotated
        return _type(arguments[0])
    return TYPES[annotation]


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if field.is_required():
        return "must be given"
    if default is None or default in ((), {}) or isinstance(default, BaseModel):
        return ""
    return code(str(default).lower() if isinstance(default, bool) else str(default))


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [
        f"{sign} {limit:g}" if limit < 100_000 else f"{sign} {limit}"
        for rule in field.metadata
        for name, sign in signs.items()
        if (limit := getattr(rule, name, None)) is not None
    ]
    if any(getattr(rule, "min_length", None) for rule in field.metadata):
        found.append("not empty")
    return ", ".join(found)


def _meaning(field: FieldInfo) -> str:
    if field.description:
        return field.description
    models = [part for part in (field.annotation, *get_args(field.annotation)) if hasattr(part, "model_fields")]
    return (models[0].__doc__ or "").strip() if models else ""


# -- command line -----------------------------------------------------------------------------------------------------


def commands(command: Any = None, path: str = "headwater") -> Iterator[tuple[str, Any]]:
    """Walk through the commands: the words that are typed, and Typer's command."""
    command = typer.main.get_command(app) if command is None else command
    yield path, command
    for name, inner in commands_of(command).items():
        yield from commands(inner, f"{path} {name}")


CLI_INTRODUCTION = """# Command line

Data go to stdout, progress and errors to stderr. Every command has `--help`, or `-h`; `headwater help lake verify` shows the
same. `headwater --install-completion` has your shell complete commands and options, from its next start on;
`--show-completion` prints the script instead.

Every command that prints takes `--json`, but `run`, which becomes the worker and logs, and `help`. On a terminal tables are
folded to its width; nothing is cut off.

Exit code 0: fine; 1: problems found; 2: wrong usage or settings.

In a usage, what is in brackets may be left out, and what has dots may be given more than once.

"""


def cli_page() -> str:
    """Return every command with its arguments and options."""
    page = [NOTE, CLI_INTRODUCTION]
    for path, command in commands():
        page.append(f"## {path}\n\n```\n{_usage(path, command)}\n```\n\n{command.help}\n\n")
        rows = [
            [_names(one), _value(one), _option_default(one), _cli_meaning(one)]
            for one in command.params
            if not one.hidden
        ]
        page.append(table(["argument or option", "value", "default", "meaning"], rows) if rows else "")
        inner = [f"[{path} {name}](#{path.replace(' ', '-')}-{name})" for name in commands_of(command)]
        page.append(f"Commands: {', '.join(inner)}.\n\n" if inner else "")
    return "".join(page)


def _usage(path: str, command: Any) -> str:
    arguments = [_argument(one) for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    needed = [f"{one.opts[0]} {_name(one)}" for one in options if one.required]
    rest = ["[OPTIONS]"] if len(options) > len(needed) else []
    inner = commands_of(command)
    after = [] if not inner else ["[COMMAND]"] if command.invoke_without_command else ["COMMAND"]
    return " ".join([path, *arguments, *needed, *rest, *after])


def _argument(parameter: Any) -> str:
    name = _name(parameter) if parameter.required else f"[{_name(parameter)}]"
    return f"{name}..." if parameter.nargs == -1 else name


def _name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper()


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return code(_name(parameter))
    return ", ".join(code(name) for name in [*parameter.opts, *parameter.secondary_opts])


def _value(parameter: Any) -> str:
    """Return what is typed for an argument, or behind an option, by its type; nothing for a flag."""
    if getattr(parameter, "is_flag", False):
        return ""
    kind = parameter.type_descriptor
    annotation = get_args(kind.annotation)[0] if kind.is_list else kind.annotation
    words = " or ".join(code(str(choice)) for choice in kind.choices) if kind.choices else CLI_TYPES[annotation]
    limits = [("from", parameter.min), ("to", parameter.max)]
    words += "".join(f" {word} {limit:,}" for word, limit in limits if limit is not None)
    return words + ", may be repeated" * bool(getattr(parameter, "multiple", False))


CLI_TYPES: Mapping[Any, str] = {str: "text", int: "number", float: "number", Path: "path"}


def _option_default(parameter: Any) -> str:
    default = parameter.default
    if parameter.required:
        return "must be given"
    if isinstance(parameter.show_default, str):
        return code(parameter.show_default)
    if default is None or default is False or default == "":
        return ""
    return code(parameter.opts[0] if default is True else str(default))


def _cli_meaning(parameter: Any) -> str:
    variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or []
    return (parameter.help or "") + "".join(f" Variable: {code(name)}." for name in variables)


# -- metrics and topics -----------------------------------------------------------------------------------------------


def metrics_page() -> str:
    """Return every metric of a worker."""
    rows = []
    for metric in vars(Metrics()).values():
        if isinstance(metric, Counter | Gauge):
            kind = metric._type  # noqa: SLF001 - prometheus_client has no public name for it
            labels = ", ".join(code(label) for label in metric._labelnames)  # noqa: SLF001
            name = metric._name + ("_total" if kind == "counter" else "")  # noqa: SLF001
            rows.append([code(name), kind, labels, metric._documentation])  # noqa: SLF001
    return (
        f"{NOTE}# Metrics\n\nAt `/metrics` of each worker, in Prometheus form. Counters count committed work: a slice that "
        "was aborted counts nothing. They begin at 0 with the process. Labels are agents, sinks and stages, never keys.\n\n"
        + table(["metric", "type", "labels", "meaning"], rows)
    )


@contextmanager
def _no_environment() -> Iterator[None]:
    """Hide what is set here: the pages must come out the same everywhere."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        del os.environ[name]
    os.environ["HEADWATER_CONFIG"] = str(HERE / "there-is-no-such-file.toml")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def topics_page() -> str:
    """Return every topic, as the default settings make it."""
    flow = {
        "name": "flow",
        "from": ["TABLE"],
        "enrich": [{"kind": "join", "table": "TABLE", "on": "a", "into": "b"}],
        "to": [{"sink": "NAME"}],
    }
    with _no_environment():
        example = Settings(_env_file=None, flows=(flow,))
    rows = [
        [
            code(topic.name.replace("TABLE", "<table>").replace("NAME", "<name>")),
            topic.purpose.replace("TABLE", "<table>").replace("NAME", "<name>"),
            str(topic.partitions),
            ", ".join(code(f"{key}={value}") for key, value in topic.config.items()),
        ]
        for topic in Topics(example).all()
    ]
    return (
        f"{NOTE}# Topics\n\nAs the default settings make them: `headwater` is the setting `prefix`, the partitions of ingest, "
        "raw, seen, reference and sink topics are the setting `partitions`, the retention of seen is `dedup_window`. The "
        "first worker makes what is missing, with `kafka.replication_factor` replicas; nothing ever changes a topic that is "
        "there.\n\n" + table(["topic", "what for", "partitions", "configuration"], rows)
    )


# -- Faust ------------------------------------------------------------------------------------------------------------

ROWS = HERE.parents[1] / "tests" / "support" / "faust_rows"
GROUPS = (
    "Agents",
    "Asking",
    "Streams",
    "Tables",
    "Windows",
    "Models",
    "Channels and time",
    "Commands",
    "Sensors and web",
    "What goes wrong",
)
FAUST_INTRODUCTION = """# Faust

What [Faust](https://faust-streaming.github.io/faust/) 0.15 documents, and what happens to it in an app with
`broker="headwater://..."` and `store="headwater://"`. Each row is a test: a small app in `tests/support/faust_rows`, run as a
worker on Apache Kafka, killed half-way and started again. *Works* means that its output is exact: nothing is lost, nothing
comes twice. *Different* says how, and *refused* means that the worker ends at its start, with the reason in its log.

"""
FAUST_SETTINGS = """## Settings

Each setting of Faust, by argument, by a module of settings or by a variable of the environment. *Kept* is as in Faust.
*Mapped* goes to librdkafka. *No effect* is said in a warning at the start where a value is given, and *refused* ends the start.

Properties of librdkafka without a setting of Faust: in the broker's URL (`headwater://127.0.0.1:9092?client.rack=a`), in
the variable `HEADWATER_KAFKA__PROPERTIES` (a JSON object), or in `app.transport.properties`, which come first.

"""
FAUST_TESTS = """## Faust's own tests

`make faust-tests` takes the tests that faust-streaming ships in its source distribution, and runs them with this transport as
the default broker and its store as the default store: by pytest, and three stress applications on Apache Kafka. Each of
those runs as two workers, which get SIGTERM, SIGKILL, SIGINT and SIGKILL in turns; what they report counts. It prints how many
passed, failed and were refused, and fails when a test fails that is not in this list.

"""
UPSTREAM = HERE.parents[1] / "tests" / "upstream" / "known.toml"


def faust_settings() -> str:
    """Return what happens to each setting of Faust."""
    from faust.types.settings import Settings  # noqa: PLC0415 - Faust takes a second to import

    from pipeline.apps.settings import RULES  # noqa: PLC0415 - for the same reason

    def how(name: str) -> str:
        rule = RULES[name]
        return "; ".join(part for part in (f"`{rule.name}`" if rule.name else "", rule.how) if part)

    rows = [
        [f"`{name}`", RULES[name].kind if name in RULES else "kept", how(name) if name in RULES else ""]
        for name in sorted(Settings.SETTINGS, key=str.lower)
    ]
    return FAUST_SETTINGS + table(["setting", "", "how"], rows)


def faust_tests() -> str:
    """Return the tests of Faust that fail here, by the reason."""
    known = tomllib.loads(UPSTREAM.read_text(encoding="utf-8"))
    rows = [
        [f"`{one['test'].removeprefix('tests/')}`", "refused" if one.get("refused") else "failed", one["why"]]
        for one in known["fails"]
    ]
    left_out = [[f"`{one['what'].removeprefix('tests/')}`", "left out", one["why"]] for one in known["left_out"]]
    return FAUST_TESTS + table(["test", "", "why"], rows + left_out)


def faust_page() -> str:
    """Return the features of Faust, as the apps of their tests say."""
    by_group: dict[str, list[list[str]]] = {group: [] for group in GROUPS}
    for path in sorted(ROWS.glob("[a-z]*.py")):
        said = _constants(path)
        by_group[str(said["GROUP"])].append([str(said["FEATURE"]), str(said["VERDICT"]), str(said["HOW"])])
    tables = (f"## {group}\n\n{table(['feature', 'verdict', 'how'], rows)}" for group, rows in by_group.items() if rows)
    return f"{NOTE}{FAUST_INTRODUCTION}{''.join(tables)}{faust_settings()}{faust_tests()}"


def _constants(path: Path) -> dict[str, object]:
    """Return what an app says about itself; read, not run: some of them cannot be imported."""
    found: dict[str, object] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with suppress(ValueError):
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "cli.md": cli_page,
    "metrics.md": metrics_page,
    "topics.md": topics_page,
    "faust.md": faust_page,
}


def stale() -> list[str]:
    """Return the pages that are not what the code says."""
    return [
        name
        for name, page in PAGES.items()
        if not (HERE / name).is_file() or (HERE / name).read_text(encoding="utf-8") != page().rstrip("\n") + "\n"
    ]


def main() -> int:
    """Write the pages, or with --check say which are stale."""
    if "--check" in sys.argv[1:]:
        for name in (found := stale()):
            sys.stderr.write(f"docs/reference/{name} is stale (try: python docs/reference/generate.py)\n")
        return 1 if found else 0
    for name, page in PAGES.items():
        (HERE / name).write_text(page().rstrip("\n") + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
