"""What a user installs: wheel and sdist in clean environments, with each extra alone, and the image by its Dockerfile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.dockerfiles import DOCKER, follow
from support.paths import ROOT

from headwater.lab import kafka, processes

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = list(PROJECT["project"]["optional-dependencies"])
ALL = ",".join(EXTRAS)
HERE = ".".join(map(str, sys.version_info[:2]))
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
OTHERS = [version for version in PYTHONS if version != HERE]
AGENTS = list(PROJECT["project"]["entry-points"]["headwater.agents"])
READY = "Worker]: Ready"
"""What Faust says when a worker runs."""

SETTINGS = """
partitions = 1
modules = ["functions"]
[kafka]
bootstrap_servers = "{servers}"
replication_factor = 1
[web]
enabled = false
[[flows]]
name = "orders"
from = ["orders"]
to = "orders"
enrich = [{{ kind = "python", name = "vat" }}{enrich}]
{flow}
{more}
"""
FUNCTIONS = """
from headwater import enrich

@enrich("vat")
def vat(change):
    return {"vat": 1}
"""
ORDER = {"Keys": {"id": {"S": "o-1"}}, "NewImage": {"id": {"S": "o-1"}, "total": {"N": "100"}}}
GOLDEN = {
    "event": {"eventID": "e-1", "eventName": "INSERT", "tableName": "orders", "dynamodb": ORDER},
    "expect": [{"flow": "orders", "sink": "orders"}],
}
SQL = ', { kind = "sql", query = "SELECT id, 2 AS two FROM changes" }'
LAKE = '[lake]\nurl = "file://{directory}/lake"\n'
ICEBERG = LAKE + 'table = "iceberg"\n[lake.catalog]\ntype = "sql"\nuri = "sqlite:///{directory}/catalog.db"\n'
AVRO = 'envelope = "plain"\nformat = "avro"'
REGISTRY = '[schema_registry]\nurl = "mock://installed"\n'  # that of the client, in its own process
PUBSUB = '[[pubsubs]]\nproject = "p"\nsinks = ["orders"]\n'
USE: dict[str, dict[str, str]] = {
    "lake": {"more": LAKE},
    "iceberg": {"more": ICEBERG},
    "sql": {"enrich": SQL},
    "registry": {"flow": AVRO, "more": REGISTRY},
    "pubsub": {"more": PUBSUB},
}
"""By extra: settings that need it."""


def test_every_extra_but_the_lab_has_settings_that_need_it() -> None:
    assert {*USE, "lab"} == set(EXTRAS)


# -- what is built ----------------------------------------------------------------------------------------------------


def uv() -> str:
    found = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found is not None, "uv is a package of the extra lab"
    return found


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def done(*command: str | Path, cwd: Path | None = None) -> str:
    """What a program prints, when it ends well."""
    ended = run(*command, cwd=cwd)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


class Built:
    """Wheel and sdist, and the versions of the lock: a release of somebody else changes no test."""

    def __init__(self, directory: Path) -> None:
        done(uv(), "build", "--quiet", "--out-dir", directory, ROOT)  # the wheel is built from the sdist
        (self.wheel,), (self.sdist,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
        self.constraints = directory / "constraints.txt"
        options = ("--quiet", "--frozen", "--no-emit-project", "--no-hashes", "--all-extras", "--no-default-groups")
        done(uv(), "export", *options, "--output-file", self.constraints, cwd=ROOT)
        self._environments = directory / "environments"

        self._extras: dict[Path, str] = {}

    def environment(self, extras: str = "", python: str = sys.executable, name: str = "") -> Path:
        """Return the bin directory of an environment with the wheel and these extras alone.

        It is one for each Python, in which what other extras brought is removed: what is left is compiled already.
        """
        directory = self._environments / (name or Path(python).name)
        if directory not in self._extras:
            done(uv(), "venv", "--quiet", "--python", python, directory)
        if self._extras.get(directory) != extras:
            self.install(directory / "bin", "--exact", f"{self.wheel}[{extras}]" if extras else str(self.wheel))
        self._extras[directory] = extras
        return directory / "bin"

    def install(self, where: Path, *what: str | Path) -> None:
        """Install into an environment."""
        options = ("--quiet", "--constraints", self.constraints, "--python", where / "python")
        done(uv(), "pip", "install", *options, *what)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("dist"))


def test_the_wheel_has_the_packages_that_pyproject_names_and_no_benchmark(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = wheel.namelist()
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == set(packages)
    assert [name for name in names if name.startswith("headwater/lab/bench/")] == []
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    for package in packages:
        here = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*") if path.is_file()}
        here = {name for name in here if "__pycache__" not in name and not name.startswith("headwater/lab/bench/")}
        assert {name for name in names if name.startswith(f"{package}/")} == here


def test_the_sdist_has_what_the_wheel_and_the_tests_need(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "uv.lock", "Makefile", "headwater/cli.py"} <= names
    assert {"tests/conftest.py", "docker/Dockerfile", "headwater/lab/bench/report.py"} <= names


# -- what is installed ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small broker: that a worker starts is all that is asked here."""
    broker = kafka.noida(tmp_path_factory.mktemp("broker"), "it starts quickly", print)
    process = broker.start(detached=False)
    try:
        broker.wait_until_ready(process)
        yield broker.address
    finally:
        processes.stop([process])


class Place:
    """A directory of a user with settings, and an installed Headwater."""

    def __init__(self, directory: Path, bin_directory: Path, servers: str, *, use: str = "") -> None:
        directory.mkdir(exist_ok=True)
        self.directory, self.bin = directory, bin_directory
        used = {"more": "", "enrich": "", "flow": "", **USE.get(use, {})}
        used["more"] = used["more"].format(directory=directory)
        (directory / "headwater.toml").write_text(SETTINGS.format(servers=servers, **used))
        (directory / "functions.py").write_text(FUNCTIONS)
        (directory / "golden").mkdir(exist_ok=True)
        (directory / "golden" / "order.json").write_text(json.dumps(GOLDEN))
        self.environment = {
            "PATH": f"{bin_directory}:/usr/bin:/bin",
            "HOME": str(directory),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "NO_GCE_CHECK": "true",  # nobody is asked for credentials of Google's cloud
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "eu-west-1",
        }

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command `headwater`."""
        return self.python(self.bin / "headwater", *arguments, **environment)

    def python(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run any command."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=self.directory,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def check(self, **environment: str) -> dict[str, dict[str, Any]]:
        """What `headwater check` finds, by what was looked at."""
        ended = self("check", "--json", **environment)
        assert ended.stdout.startswith("["), ended.stderr
        return {finding["what"]: finding for finding in json.loads(ended.stdout)}

    def start(self, *agents: str, **environment: str) -> str:
        """Start a worker; return what it says until it is ready, or ends."""
        command = [str(self.bin / "headwater"), "run", *agents]
        prefix = f"install-{uuid.uuid4()}"  # this broker waits for ever for members that were killed
        said = ""
        with subprocess.Popen(
            command,
            cwd=self.directory,
            env={**self.environment, "HEADWATER_PREFIX": prefix, "HEADWATER_STATE_DIR": prefix, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                said += line
                if READY in line:
                    break
            worker.send_signal(signal.SIGKILL)
        return said


def assert_works(place: Place, *agents: str) -> None:
    """The commands that a user tries first."""
    assert place("--version").stdout == f"headwater {PROJECT['project']['version']}\n"
    findings = place.check()
    assert [f"{finding['what']}: {finding['detail']}" for finding in findings.values() if not finding["ok"]] == []
    tested = place("flows", "test", "golden")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert READY in (said := place.start(*agents)), said


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_it_works_with_each_extra_alone(extra: str, built: Built, servers: str, tmp_path: Path) -> None:
    place = Place(tmp_path, built.environment(extra), servers, use="" if extra == "pubsub" else extra)
    assert_works(place)
    if extra == "pubsub":
        Place(tmp_path, place.bin, servers, use=extra)
        assert "default credentials were not found" in (said := place.start("pubsub")), said


def interpreter(version: str) -> str:
    """The path of a Python of this version; skip where there is none."""
    found = run(uv(), "python", "find", "--system", "--no-python-downloads", version)
    if found.returncode == 0:
        return found.stdout.strip()
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for python in sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}")):
        return str(python)
    pytest.skip(f"there is no Python {version} here")


def test_the_help_is_there_without_any_extra(built: Built, servers: str, tmp_path: Path) -> None:
    assert "Usage: headwater" in Place(tmp_path, built.environment(), servers)("--help").stdout


@pytest.mark.parametrize("version", OTHERS)
def test_it_works_on_other_pythons(version: str, built: Built, servers: str, tmp_path: Path) -> None:
    python = interpreter(version)
    for extra in EXTRAS:
        where = built.environment("", python) / "python"
        options = ("--quiet", "--dry-run", "--only-binary", ":all:", "--constraints", built.constraints)
        done(uv(), "pip", "install", *options, "--python", where, f"{built.wheel}[{extra}]")
    bare = Place(tmp_path, built.environment("", python), servers)
    assert bare.check()["flow orders"]["ok"]
    assert_works(Place(tmp_path, built.environment(ALL, python), servers, use="sql"))


def test_the_sdist_installs(built: Built, tmp_path: Path) -> None:
    done(uv(), "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    built.install(tmp_path / "venv" / "bin", built.sdist)
    assert done(tmp_path / "venv" / "bin" / "headwater", "--version").startswith("headwater ")


# -- what is missing --------------------------------------------------------------------------------------------------

IMPORT_ALL = """
import importlib, json, pkgutil
import agents, headwater, models, pipeline
from pipeline.packages import missing

found = {}
for package in (agents, headwater, models, pipeline):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=lambda name: None):
        if module.name.endswith(("worker", "tether")):  # they run
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            found[module.name] = str(missing.explained(error))
print(json.dumps(found))
"""


def test_each_module_that_needs_an_extra_names_it(built: Built, servers: str, tmp_path: Path) -> None:
    place = Place(tmp_path, built.environment(), servers)
    ended = place.python(place.bin / "python", "-c", IMPORT_ALL)
    assert ended.returncode == 0, ended.stderr
    said: dict[str, str] = json.loads(ended.stdout)
    assert said["agents.pubsub"] == (
        "the Pub/Sub sink needs google-cloud-pubsub, which is not installed (try: pip install 'headwater[pubsub]')"
    )
    hints = {module: re.findall(r"\(try: pip install 'headwater\[(\w+)\]'\)$", line) for module, line in said.items()}
    wanted = {
        "agents.lake": "lake",
        "pipeline.sinks.lake.iceberg.sink": "iceberg",
        "pipeline.steps.sql": "sql",
        "pipeline.services.registry": "registry",
        "pipeline.steps.formats.registered": "registry",
        "headwater.lab.demo": "lab",
    }
    assert {module: hints[module] for module in wanted} == {module: [extra] for module, extra in wanted.items()}
    assert [module for module, found in hints.items() if not found] == []


@pytest.mark.parametrize(("extra", "agent"), [("lake", "lake"), ("iceberg", "lake"), ("pubsub", "pubsub")])
def test_a_worker_and_check_name_the_extra_that_is_missing(
    extra: str, agent: str, built: Built, servers: str, tmp_path: Path
) -> None:
    have = "lake" if extra == "iceberg" else ""
    place = Place(tmp_path, built.environment(have), servers, use=extra)
    ended = place("run", agent)
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith(f"(try: pip install 'headwater[{extra}]')")
    assert ended.stderr.count("\n") == 1
    findings = place.check()
    assert f"pip install 'headwater[{extra}]'" in {
        finding["hint"] for finding in findings.values() if not finding["ok"]
    }


@pytest.mark.parametrize(("extra", "what"), [("sql", "a step of the kind sql"), ("registry", "the schema registry")])
def test_a_flow_names_the_extra_that_is_missing(
    extra: str, what: str, built: Built, servers: str, tmp_path: Path
) -> None:
    ended = Place(tmp_path, built.environment(), servers, use=extra)("flows", "test", "golden")
    assert ended.returncode != 0
    assert re.search(rf"{what} needs [\w-]+, which is not installed", ended.stdout + ended.stderr)
    assert f"pip install 'headwater[{extra}]'" in ended.stdout + ended.stderr


def test_the_benchmarks_say_where_they_are(built: Built, servers: str, tmp_path: Path) -> None:
    ended = Place(tmp_path, built.environment(), servers)("bench", "dedup")
    assert ended.returncode == 1
    assert ended.stderr.startswith("headwater: the benchmarks are in the repository of Headwater, not in the package")
    assert ended.stderr.count("\n") == 1


# -- names that others have, too --------------------------------------------------------------------------------------

NAMES = ("agents", "models", "pipeline")
USER = "raise RuntimeError('this is the module of the user')\n"


@pytest.fixture
def place(built: Built, servers: str, tmp_path: Path) -> Place:
    """A directory of a user, and Headwater without extras."""
    return Place(tmp_path / "user", built.environment(), servers)


def put(place: Place, *names: str) -> list[Path]:
    """Write modules of a user."""
    files = [place.directory / name for name in names]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(USER)
    return files


@pytest.mark.parametrize(
    ("end", "path"), [(".py", ""), ("/__init__.py", ".")], ids=["modules in the directory", "packages on PYTHONPATH"]
)
def test_what_users_have_of_our_names_is_told_and_disturbs_nothing(end: str, path: str, place: Place) -> None:
    files = put(place, *(f"{name}{end}" for name in NAMES))
    environment = {"PYTHONPATH": path} if path else {}
    ended = place("check", **environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for name, file in zip(NAMES, files, strict=True):
        assert f"warn packages: {file} is hidden: {name} is the name of a package of Headwater" in ended.stdout
    assert place("flows", "test", "golden", **environment).returncode == 0
    said = place.start(**environment)
    assert READY in said, said
    assert [line.partition(" is hidden")[0] for line in said.splitlines()[:3]] == [f"warning: {file}" for file in files]


def test_a_function_that_imports_what_is_hidden_says_so(place: Place) -> None:
    (file,) = put(place, "models/__init__.py")
    (place.directory / "functions.py").write_text(f"from models.order import X\n{FUNCTIONS}")
    line = f"modules: functions needs models.order, but {file} is hidden: models is the name of a package of Headwater"
    for command in (["run"], ["flows", "test", "golden"]):
        ended = place(*command)
        assert ended.returncode == 2
        assert line in ended.stderr
        assert "Traceback" not in ended.stderr
    assert line in place.check()["flow orders"]["detail"]


def test_a_program_that_has_loaded_a_package_of_our_name_is_told(place: Place) -> None:
    for name in NAMES:
        (file,) = put(place, f"{name}.py")
        file.write_text("")
        ended = place.python(place.bin / "python", "-c", f"import {name}, headwater")
        assert ended.stderr.splitlines()[-1].startswith(
            f"ImportError: Headwater has a package named {name}, and so has"
        )
        assert str(file) in ended.stderr.splitlines()[-1]
        file.unlink()


def test_the_worker_finds_what_is_installed_before_what_is_in_the_directory(place: Place) -> None:
    put(place, "faust.py", "confluent_kafka.py", "logging.py", "boto3.py")
    assert READY in (said := place.start()), said


def test_a_module_of_functions_that_is_hidden_is_told(place: Place) -> None:
    (file,) = put(place, "orjson.py")
    settings = (place.directory / "headwater.toml").read_text().replace('["functions"]', '["functions", "orjson"]')
    (place.directory / "headwater.toml").write_text(settings)
    ended = place("flows", "test", "golden")
    assert ended.returncode == 2
    assert f"modules: {file} is hidden: orjson is " in ended.stderr


def test_a_distribution_that_overwrites_ours_is_named(built: Built, servers: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "agents").mkdir(parents=True)
    (other / "agents" / "__init__.py").write_text("import not_there\n\nAgent = object\n")
    (other / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "other-agents"\nversion = "1"\n[tool.hatch.build.targets.wheel]\npackages = ["agents"]\n'
    )
    done(uv(), "build", "--quiet", "--wheel", "--out-dir", tmp_path, other)
    (wheel,) = tmp_path.glob("*.whl")
    place = Place(tmp_path / "user", built.environment(name="both"), servers)
    built.install(place.bin, wheel)
    line = "other-agents has files of the same names as Headwater, and each has overwritten some of the other"
    assert place.check()["packages"]["detail"] == line
    assert place("run").stderr.startswith(f"headwater: {line} (try: give Headwater an environment of its own")
    done(uv(), "pip", "install", "--quiet", "--no-deps", "--reinstall", "--python", place.bin / "python", built.wheel)
    assert not place.check()["packages"]["ok"]
    ended = place.python(place.bin / "python", "-c", "from agents import Agent")
    assert "this is the package of Headwater" in ended.stderr.splitlines()[-1]


# -- the image --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile's lines make of the repository, in a directory; returns its bin directory."""
    directory = tmp_path_factory.mktemp("app")
    python = "3.12" if "3.12" in PYTHONS else HERE
    environment = {
        "PATH": f"{Path(uv()).parent}{os.pathsep}{os.environ['PATH']}",
        "UV_PYTHON": interpreter(python) if python != HERE else sys.executable,
        "UV_LINK_MODE": "hardlink",  # a copy, and bytecode of all, take a minute more
        "UV_COMPILE_BYTECODE": "0",
    }
    follow(DOCKER / "Dockerfile", directory, environment)
    return directory / ".venv" / "bin"


def test_the_image_has_the_command_and_what_functions_import(image: Path, servers: str, tmp_path: Path) -> None:
    place = Place(tmp_path, image, servers, use="iceberg")
    assert [one for one in place.check().values() if not one["ok"]] == []
    ended = place.python(place.bin / "python", "-c", "from headwater import enrich; print('enrich ok')")
    assert ended.stdout == "enrich ok\n", ended.stderr
    assert place("flows", "test", "golden").returncode == 0


SINKS = (
    '[[mirrors]]\nbootstrap_servers = "{servers}"\ntopic = "copy.{{topic}}"\n[[replicas]]\nsinks = ["orders"]\n'
    + PUBSUB
)
WANTED = {
    "ingest": "needs [[sources]]",
    "mirror": "cannot be created in",
    "replica": "add [[replicas]]",
    "pubsub": "credentials",
}
"""What agents want that are not ready here: settings, more brokers there, AWS, Google."""


def test_the_image_runs_every_agent_of_the_compose_file(image: Path, servers: str, tmp_path: Path) -> None:
    services: Mapping[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    commands = [service["command"] for service in services.values() if (service.get("command") or [""])[0] == "run"]
    assert sorted(command[1] for command in commands) == sorted(AGENTS)
    place = Place(tmp_path, image, servers, use="iceberg")
    with (tmp_path / "headwater.toml").open("a") as file:
        file.write(SINKS.format(servers=servers))
    assert place.check()["agents"]["ok"]
    apart = {"replica": {"HEADWATER_REPLICAS": "[]"}}  # it would try again for a minute without credentials
    said = {agent: place.start(agent, **apart.get(agent, {})) for _, agent in commands}
    assert {agent: text for agent, text in said.items() if WANTED.get(agent, READY) not in text} == {}
    assert [agent for agent, text in said.items() if "not installed" in text] == []


# -- the lab ----------------------------------------------------------------------------------------------------------


def test_simulate_answers_from_an_installed_wheel(built: Built, servers: str, tmp_path: Path) -> None:
    place = Place(tmp_path, built.environment("lab"), servers)
    with subprocess.Popen(
        [place.bin / "headwater", "simulate"],
        cwd=tmp_path,
        env=place.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as simulator:
        assert simulator.stdout is not None
        assert simulator.stdout.readline().startswith("AWS_ENDPOINT_URL=http://127.0.0.1:")
        simulator.send_signal(signal.SIGKILL)


@pytest.mark.kafka
def test_the_demo_runs_from_an_installed_wheel(built: Built, servers: str, tmp_path: Path) -> None:
    place = Place(tmp_path, built.environment("lab"), servers)
    (tmp_path / "headwater.toml").unlink()
    ended = run(place.bin / "headwater", "demo", "--changes", "200", "--json", cwd=tmp_path, NO_COLOR="1")
    assert ended.returncode == 0, ended.stderr
    assert "PROVED 200 changes written" in ended.stderr
