"""Reads the settings, and says in one line what is wrong with them and where."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    ValidationError,
)
from pydantic_settings import (
    SettingsError,
)

from pipeline.errors import UsageError
from pipeline.files.toml_lines import line_of_key
from pipeline.settings.enrich import (
    ENRICH_KINDS,
    ComputeSettings,
    JoinSettings,
    LookupSettings,
    MaskSettings,
    PythonSettings,
    SqlSettings,
)
from pipeline.settings.flows import FlowSettings, RouteSettings
from pipeline.settings.formats import EnvelopeSettings, FormatSettings
from pipeline.settings.root import ENV_PREFIX, Settings, config_file
from pipeline.settings.sources import KINDS, DynamoDBStreamSettings, KinesisSettings

PARTS = (
    DynamoDBStreamSettings,
    KinesisSettings,
    FlowSettings,
    RouteSettings,
    JoinSettings,
    ComputeSettings,
    SqlSettings,
    LookupSettings,
    PythonSettings,
    MaskSettings,
    EnvelopeSettings,
    FormatSettings,
)
"""What is in lists."""
NOT_SETTINGS = {"HEADWATER_CONFIG", "HEADWATER_BIN", "HEADWATER_REQUIRE_KAFKA", "HEADWATER_TEST_EXAMPLES"}
"""Variables that begin like settings: where the settings file is, where scripts find the command, switches of the tests."""


def load(**overrides: Any) -> Settings:
    """Read the settings; raise UsageError with one line that names each wrong key and what was expected."""
    file = config_file(os.environ)
    if "HEADWATER_CONFIG" in os.environ and not file.is_file():
        raise UsageError(f"HEADWATER_CONFIG: there is no file {file}", hint="ls headwater.toml")
    for where, names in (("environment", os.environ), (".env", dotenv_values(".env"))):
        unknown = sorted(name for name in names if name.startswith(ENV_PREFIX) and not _is_setting(name))
        if unknown:
            raise UsageError(
                "; ".join(f"{where}: unknown setting {name}{_guess(name)}" for name in unknown), hint=_HINT
            )
    try:
        return Settings(**overrides)
    except ValidationError as error:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        raise UsageError(f"{file} or environment: {'; '.join(_problems(error, file, text))}", hint=_HINT) from error
    except SettingsError as error:
        wrong = re.search(r'field "(\w+)"', str(error))
        name = ENV_PREFIX + wrong[1].upper() if wrong else "a variable"
        raise UsageError(f"environment: {name} is not the JSON that was expected", hint=_HINT) from error
    except (OSError, ValueError) as error:  # a file that cannot be read, or is not TOML
        raise UsageError(f"{file}: {error}", hint=_HINT) from error


_HINT = "docs/reference/settings.md"


def line_of_setting(flow: FlowSettings, path: Sequence[str | int]) -> str:
    """Return file:line of a setting of a flow, '' when the flow is not in the settings file as it is."""
    file = config_file(os.environ)
    try:
        text = file.read_text(encoding="utf-8")
        written = tomllib.loads(text).get("flows", [])
    except (OSError, ValueError):
        return ""
    for number, one in enumerate(written):
        with suppress(ValidationError):
            if FlowSettings.model_validate(one) == flow:
                return f"{file}:{line_of_key(text, ('flows', number, *path))}"
    return ""


def keys(model: type[BaseModel] = Settings, before: str = "") -> list[str]:
    """Return the dotted names of all settings: `prefix`, `kafka.bootstrap_servers`, ..."""
    names = []
    for name, field in model.model_fields.items():
        names.append(f"{before}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names.extend(keys(field.annotation, f"{before}{name}."))
    return names


def _is_setting(variable: str) -> bool:
    name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
    return variable in NOT_SETTINGS or name in keys() or name.startswith("kafka.properties.")


def _guess(variable: str) -> str:
    names = [ENV_PREFIX + key.upper().replace(".", "__") for key in keys()]
    near = difflib.get_close_matches(variable, names, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _problems(error: ValidationError, file: Path, text: str) -> list[str]:
    """Return each problem in words, with its line where it is in the file; else it may come from the environment."""
    found = error.errors(include_url=False, include_input=False)
    places = [one["loc"] for one in found]
    problems = []
    for one in found:
        loc = one["loc"]
        if one["type"] == "too_short" and any(place[: len(loc)] == loc != place for place in places):
            continue  # what is wrong with the entries is said already
        message = one["msg"].removeprefix("Value error, ")
        said = message.partition(":")[0].split(".")  # what looks at several settings says itself at which of them
        line = line_of_key(text, [*loc, *(int(part) if part.isdigit() else part for part in said)])
        problems.append(_explain(loc, one["type"], message) + (f" ({file}:{line})" if line else ""))
    return problems


def _explain(loc: tuple[str | int, ...], kind: str, message: str) -> str:
    known = {*KINDS, *ENRICH_KINDS}  # pydantic puts the members of unions in
    parts = [str(part) for n, part in enumerate(loc) if n == len(loc) - 1 or part not in known]
    path = ".".join(parts)
    if kind != "extra_forbidden":
        return f"{path}: {message}" if path else message
    parent, last = ".".join(parts[:-1]), parts[-1]
    names = {key.rpartition(".")[2] for key in keys() if key.rpartition(".")[0] == parent} or {
        field.alias or name for model in PARTS for name, field in model.model_fields.items()
    }
    near = difflib.get_close_matches(last, sorted(names), n=1)
    return f"{path}: there is no such key" + (f", did you mean {near[0]}?" if near else "")
