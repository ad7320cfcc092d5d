"""AWS stand-ins of the local stack: ministack (DynamoDB, its streams, S3) and DynamoDB Local (no S3)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from headwater.lab import kafka, processes
from headwater.lab.cache import cached, copy_jars, fetch, is_cached, recipe
from headwater.lab.processes import LOOPBACK, Process
from pipeline.errors import HeadwaterError
from pipeline.files.private import private_directory

MINISTACK_VERSION = "1.5.33"
DYNAMODB_LOCAL_VERSION = "3.1.0"
READY_SECONDS = 60.0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class StandIn:
    """How to start a stand-in for AWS."""

    name: str
    port: int
    command: tuple[str, ...]
    environment: dict[str, str]
    log: Path

    @property
    def url(self) -> str:
        """Return the endpoint URL."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self, *, detached: bool) -> Process:
        """Start it; `wait_until_ready` tells when it can be used."""
        return processes.start(
            self.name, self.command, log=self.log, address=self.url, environment=self.environment, detached=detached
        )

    def wait_until_ready(self, process: Process) -> None:
        """Return once it listens; raise HeadwaterError if it ends or takes too long."""
        listens = partial(processes.listens, LOOPBACK, self.port)
        processes.wait_until_ready(process, listens, seconds=READY_SECONDS)


def ministack(directory: Path, progress: Progress) -> StandIn:
    """Prepare ministack, in a virtual environment of its own, on a free port, with its data in `directory`."""
    requirements = recipe("ministack/requirements.txt")
    name = f"ministack-{MINISTACK_VERSION}"
    if not is_cached(name, requirements):
        progress(f"installing ministack {MINISTACK_VERSION} from PyPI (once)")
    python = cached(name, requirements, partial(_install, requirements)) / "bin" / "python"
    if not python.exists():
        raise HeadwaterError(f"{python}: the Python that created it is gone", hint=f"rm -r {python.parents[1]}")
    private_directory(directory)
    port = processes.free_port()
    environment = {
        "BIND_HOST": LOOPBACK,  # it would listen on every interface
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": LOOPBACK,
        "PERSIST_STATE": "1",
        "STATE_DIR": str(directory / "state"),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(directory / "s3"),
        "LOG_LEVEL": "WARNING",
    }
    command = (str(python), "-I", "-m", "ministack")
    return StandIn(f"ministack {MINISTACK_VERSION}", port, command, environment, directory / "ministack.log")


def dynamodb_local(directory: Path, progress: Progress) -> StandIn:
    """Prepare DynamoDB Local on a free port, with its data in `directory`.

    It has no option for the address, and would listen on every interface: recipes/dynamodb-local/Loopback.java, which
    Java compiles as it starts, keeps it on 127.0.0.1. That takes a JDK; a JRE alone has no compiler.
    """
    pom, launcher = recipe("dynamodb-local/pom.xml"), recipe("dynamodb-local/Loopback.java")
    name = f"dynamodb-local-{DYNAMODB_LOCAL_VERSION}"
    java = kafka.java_version() or 0
    if java < kafka.JAVA_NEEDED or (not is_cached(name, pom) and shutil.which("mvn") is None):
        raise HeadwaterError(
            f"DynamoDB Local needs Java {kafka.JAVA_NEEDED} or newer, and Maven to fetch it once",
            hint="apt-get install default-jdk-headless maven, or --aws ministack",
        )
    if not is_cached(name, pom):
        progress(f"fetching DynamoDB Local {DYNAMODB_LOCAL_VERSION} from Maven Central (48 MB, once)")
    jars = cached(name, pom, partial(copy_jars, pom))
    data = directory / "data"
    private_directory(data)
    port = processes.free_port()
    program = ("java", "-Xmx512m", f"-Djava.library.path={jars}", "-cp", f"{jars}/*", str(launcher))
    options = ("-port", str(port), "-sharedDb", "-dbPath", str(data), "-disableTelemetry")
    log = directory / "dynamodb-local.log"
    return StandIn(f"DynamoDB Local {DYNAMODB_LOCAL_VERSION}", port, program + options, {}, log)


def speaks_s3(url: str) -> bool:
    """Tell whether an endpoint answers as S3 does; raise HeadwaterError where nothing answers."""
    # Never the user's credentials: this may be any address.
    nobody = boto3.Session(aws_access_key_id="probe", aws_secret_access_key="probe", region_name="eu-west-1")  # noqa: S106
    once = Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1})
    try:
        with closing(nobody.client("s3", endpoint_url=url, config=once)) as client:
            return "Buckets" in client.list_buckets()
    except ClientError as error:  # S3 refuses a key that it does not know in words of its own
        return error.response["Error"].get("Code") in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"}
    except ResponseParserError:
        return False
    except (BotoCoreError, ValueError) as error:  # the latter: not a URL
        raise HeadwaterError(
            f"AWS_ENDPOINT_URL={url}: {error}", hint="unset AWS_ENDPOINT_URL, to have a stand-in started here"
        ) from error


def _install(requirements: Path, into: Path) -> None:
    what, again = f"what {requirements} names", f"pip download -r {requirements}"
    python = into / "bin" / "python"
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        fetch([sys.executable, "-m", "venv", "--clear", str(into)], what="a virtual environment", again=again)
        fetch([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], what=what, again=again)
    else:
        fetch([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(into)], what="Python", again=again)
        fetch(
            [uv, "pip", "install", "--quiet", "--python", str(python), "-r", str(requirements)], what=what, again=again
        )
