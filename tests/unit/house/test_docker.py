"""There is no Docker engine in the tests: what can be known without one is checked here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from support.dockerfiles import DOCKER, context, instructions
from support.paths import ROOT

from headwater.lab import aws, cache, kafka
from pipeline.settings.load import load

DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "ministack" / "Dockerfile"]
LAMBDA = DOCKER / "lambda" / "Dockerfile"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
AGENTS = {point.name for point in entry_points(group="headwater.agents")}
WORKERS = {name: service for name, service in SERVICES.items() if (service.get("command") or [""])[0] == "run"}
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


def last(dockerfile: Path, name: str) -> str:
    return [rest for found, rest in instructions(dockerfile) if found == name][-1]


def first_argument(dockerfile: Path) -> str:
    return next(rest for found, rest in instructions(dockerfile) if found == "ARG")


# compose.yaml


def test_every_agent_has_a_service_that_runs_it() -> None:
    assert {name: service["command"] for name, service in WORKERS.items()} == {name: ["run", name] for name in AGENTS}


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    tag = SERVICES[name]["image"].rpartition(":")[2]
    if "build" not in SERVICES[name]:
        assert re.fullmatch(r"\d+\.\d+\.\d+", tag)
    assert tag != "latest"


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_built_can_be_found(name: str) -> None:
    build = SERVICES[name].get("build")
    if build is not None:
        assert (DOCKER / build["context"] / build.get("dockerfile", "Dockerfile")).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_services_wait_for_what_tells_its_health(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert SERVICES[needed]["healthcheck"]["test"][0] == "CMD"
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[needed]["restart"].startswith("on-failure"), "it ends"


@pytest.mark.parametrize("name", SERVICES)
def test_services_that_stay_have_a_health_check(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check.get("disable") or {"test", "interval", "timeout", "start_period", "retries"} == set(check)


@pytest.mark.parametrize("name", WORKERS)
def test_workers_are_healthy_when_ready(name: str) -> None:
    assert ":6066/readyz" in WORKERS[name]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_on_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_no_two_services_share_a_port_or_a_volume() -> None:
    ports = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    volumes = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert len(ports) == len(set(ports))
    assert len(volumes) == len(set(volumes))
    assert set(volumes) == set(COMPOSE["volumes"])


def test_configs_are_files_and_are_used() -> None:
    used = {config["source"] for service in SERVICES.values() for config in service.get("configs", [])}
    assert used == set(COMPOSE["configs"])
    assert all((DOCKER / config["file"]).is_file() for config in COMPOSE["configs"].values())


@pytest.mark.parametrize("name", WORKERS)
def test_settings_are_valid(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, value in (image_environment() | SERVICES[name]["environment"]).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HEADWATER_CONFIG", str(DOCKER / "headwater.toml"))
    settings = load()
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert settings.web.host == "0.0.0.0"  # noqa: S104 - in a container
    assert settings.web.port == 6066
    assert WORKERS[name]["volumes"] == [f"{name}:{settings.state_dir.parent}"]


def test_prepare_makes_what_the_settings_name() -> None:
    namespace: dict[str, Any] = {}
    exec((DOCKER / "prepare.py").read_text().replace("from __future__ import annotations", ""), namespace)  # noqa: S102
    text = (DOCKER / "headwater.toml").read_text()
    assert f"tables = {json.dumps(list(namespace['TABLES']))}" in text
    assert f'url = "s3://{namespace["BUCKET"]}/' in text


# Dockerfiles


def image_environment() -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(last(DOCKER / "Dockerfile", "ENV")))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_images_run_as_a_user_without_rights(dockerfile: Path) -> None:
    user = last(dockerfile, "USER")
    assert int(user) > 0
    assert f"--uid {user}" in " ".join(rest for name, rest in instructions(dockerfile) if name == "RUN")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_base_images_are_pinned_to_a_python(dockerfile: Path) -> None:
    bases = [rest for name, rest in instructions(dockerfile) if name == "FROM"]
    assert all(re.match(r"\$\{PYTHON_IMAGE\}( AS build)?$", base) for base in bases)
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+-slim-\w+", first_argument(dockerfile))


@pytest.mark.parametrize("dockerfile", [*DOCKERFILES, LAMBDA], ids=lambda path: path.parent.name)
def test_a_base_image_can_be_pinned_by_its_digest(dockerfile: Path) -> None:
    name, _, image = first_argument(dockerfile).partition("=")
    assert instructions(dockerfile)[0][0] == "ARG", "before the first FROM: only those can be used in it"
    assert all(rest.startswith(f"${{{name}}}") for found, rest in instructions(dockerfile) if found == "FROM")
    assert f"--build-arg {name}={image}@sha256:" in dockerfile.read_text()


@pytest.mark.parametrize("dockerfile", [*DOCKERFILES, LAMBDA], ids=lambda path: path.parent.name)
def test_who_listens_on_all_addresses_says_why(dockerfile: Path) -> None:
    lines = dockerfile.read_text().splitlines()
    said = any(line.startswith("# 0.0.0.0: ") for line in lines)
    assert said == any("0.0.0.0" in line for line in lines if not line.startswith("#"))  # noqa: S104 - text


@pytest.mark.parametrize("dockerfile", [*DOCKERFILES, LAMBDA], ids=lambda path: path.parent.name)
@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, "--no-color", str(dockerfile)], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_the_image_is_the_command() -> None:
    assert last(DOCKER / "Dockerfile", "ENTRYPOINT") == '["headwater"]'
    assert last(DOCKER / "Dockerfile", "CMD") == '["run"]'
    assert ":6066/readyz" in last(DOCKER / "Dockerfile", "HEALTHCHECK")


def test_the_image_is_built_from_the_lock_with_the_uv_of_the_makefile() -> None:
    commands = " ".join(rest for name, rest in instructions(DOCKER / "Dockerfile") if name == "RUN")
    assert commands.count("uv sync --frozen --no-dev ${EXTRAS}") == 2
    version = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert version is not None
    assert f"uv=={version[1]}" in commands


def test_the_image_has_all_extras_unless_others_are_asked_for() -> None:
    assert ("ARG", 'EXTRAS="--all-extras"') in instructions(DOCKER / "Dockerfile")


def copied(dockerfile: Path) -> set[str]:
    words = [rest.split() for name, rest in instructions(dockerfile) if name == "COPY"]
    return {source for found in words if not found[0].startswith("--") for source in found[:-1]}


@pytest.mark.parametrize("dockerfile", [*DOCKERFILES, LAMBDA], ids=lambda path: path.parent.name)
def test_what_is_copied_is_there_and_not_ignored(dockerfile: Path) -> None:
    assert copied(dockerfile) == context(dockerfile)
    assert all((ROOT / source).exists() for source in copied(dockerfile))


def test_the_image_of_the_lambda_runs_the_handler_from_what_is_copied() -> None:
    module, _, name = json.loads(last(LAMBDA, "CMD"))[0].rpartition(".")
    assert callable(getattr(import_module(module), name))
    assert first_argument(LAMBDA) == "LAMBDA_IMAGE=public.ecr.aws/lambda/python:3.12"
    assert last(LAMBDA, "FROM") == "${LAMBDA_IMAGE}"


def test_what_is_packaged_is_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build, tools = project["tool"]["hatch"]["build"], project["tool"]
    packages = set(build["targets"]["wheel"]["packages"])
    metadata = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "uv.lock"}
    assert copied(DOCKER / "Dockerfile") == packages | metadata
    # What stays at home with the Lambda: the face and the agents, which need Faust.
    lambda_packages = packages - {"headwater", "agents"}
    assert copied(LAMBDA) == lambda_packages | {"pyproject.toml", "uv.lock"}
    makefile = (ROOT / "Makefile").read_text()
    assert f"cp -R {' '.join(sorted(lambda_packages))} dist/lambda" in makefile
    assert set(tools["deptry"]["known_first_party"]) == packages
    assert set(tools["importlinter"]["root_packages"]) == packages
    assert packages <= set(tools["mypy"]["files"])


# Recipes of the local stack


def pinned(pom: Path) -> dict[str, str]:
    namespace = {"": "http://maven.apache.org/POM/4.0.0"}
    found = ET.parse(pom).getroot().findall("dependencies/dependency", namespace)  # noqa: S314 - our own file
    return {item.findtext("artifactId", "", namespace): item.findtext("version", "", namespace) for item in found}


def test_versions_are_the_same_everywhere() -> None:
    requirements = (cache.recipe("ministack/requirements.txt")).read_text()
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{kafka.VERSION}"
    assert pinned(cache.recipe("kafka/pom.xml"))["kafka_2.13"] == kafka.VERSION
    assert SERVICES["dynamodb"]["image"] == f"amazon/dynamodb-local:{aws.DYNAMODB_LOCAL_VERSION}"
    assert pinned(cache.recipe("dynamodb-local/pom.xml"))["DynamoDBLocal"] == aws.DYNAMODB_LOCAL_VERSION
    assert SERVICES["s3"]["image"] == f"headwater-ministack:{aws.MINISTACK_VERSION}"
    assert f"\nministack=={aws.MINISTACK_VERSION}\n" in requirements


def test_requirements_are_pins_alone() -> None:
    lines = (cache.recipe("ministack/requirements.txt")).read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; .*)?|# .*", line) for line in lines)
