"""What the package says of itself, and what is said when a part of it is not installed."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from pipeline.packages import missing, own_packages

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
PAGE = (ROOT / "docs/how-to/install.md").read_text()


def named(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match[0]


def test_the_page_has_the_extras_and_pythons_of_pyproject() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(EXTRAS)
    assert re.findall(r"3\.\d+", PAGE.partition("\n\n")[2].partition("\n\n")[0]) == PYTHONS
    lowest, highest = PYTHONS[0], PYTHONS[-1].split(".")
    assert PROJECT["requires-python"] == f">={lowest},<3.{int(highest[1]) + 1}"


def test_every_extra_says_what_needs_it() -> None:
    assert set(missing.WHAT) == set(EXTRAS)


def test_modules_of_extras_name_their_distributions() -> None:
    of_extras = {named(one) for some in EXTRAS.values() for one in some}
    shared = {one for some in missing.SHARED.values() for one in some}
    assert {*missing.DISTRIBUTIONS.values(), *shared} <= of_extras
    programs = {"headwater", "uv", "confluent-kafka"}  # the last: its extras bring modules of many names
    assert of_extras - set(missing.DISTRIBUTIONS.values()) == programs


def test_the_metadata_of_the_installed_package_have_the_extras() -> None:
    assert {
        extra: set(map(named, some)) - {"headwater"} <= missing.extras()[extra] for extra, some in EXTRAS.items()
    } == (dict.fromkeys(EXTRAS, True))


@pytest.mark.parametrize(
    ("module", "lacks", "line"),
    [
        (
            "pipeline.sinks.pubsub",
            "google.api_core",
            "the Pub/Sub sink needs google-cloud-pubsub, which is not installed (try: pip install 'headwater[pubsub]')",
        ),
        (
            "pipeline.sinks.lake.objects",
            "obstore",
            "the lake needs obstore, which is not installed (try: pip install 'headwater[lake]')",
        ),
        (
            "pipeline.sinks.lake.iceberg.io",
            "pyarrow",
            "an Iceberg table needs pyarrow, which is not installed (try: pip install 'headwater[iceberg]')",
        ),
        (
            "pipeline.steps.sql",
            "pyarrow",
            "a step of the kind sql needs pyarrow, which is not installed (try: pip install 'headwater[sql]')",
        ),
        (
            "headwater.lab.destinations",
            "duckdb",
            "the lab (demo, local, simulate) needs duckdb, which is not installed (try: pip install 'headwater[lab]')",
        ),
    ],
)
def test_a_missing_package_names_its_extra(module: str, lacks: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    for name in [name for name in sys.modules if name == lacks or name.startswith(f"{lacks}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, lacks, None)
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(module)
    assert str(missing.explained(error.value)) == line


def test_the_benchmarks_are_in_the_repository() -> None:
    error = ModuleNotFoundError("No module named 'headwater.lab.bench'", name="headwater.lab.bench")
    assert "in the repository" in str(missing.explained(error))


def test_a_module_of_ours_that_is_missing_is_a_fault_of_the_program() -> None:
    assert missing.explained(ModuleNotFoundError("x", name="pipeline.not_there")) is None
    assert missing.explained(ModuleNotFoundError("x", name="headwater.not_there")) is None


# -- names that others have, too --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", own_packages.NAMES)
def test_our_packages_are_found_before_those_on_the_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.find_spec(f"{name}")
    assert spec is not None
    assert spec.origin == str(ROOT / name / "__init__.py")
    assert own_packages.hidden([str(tmp_path)]) == [(name, str(tmp_path / f"{name}.py"))]


def test_a_directory_of_files_that_are_no_code_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.bin").touch()
    assert own_packages.hidden([]) == []
    (tmp_path / "models" / "order.py").touch()
    assert own_packages.hidden([]) == [("models", str(tmp_path / "models"))]


def test_the_finder_answers_for_no_other_name() -> None:
    assert own_packages.OwnPackages.find_spec("json") is None
    assert own_packages.OwnPackages.find_spec("models.order") is None


def test_a_package_of_our_name_that_is_loaded_already_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    with pytest.raises(ImportError, match="Headwater has a package named models, and so has another program"):
        own_packages.put_first()
