"""The local stack: a Kafka broker and stand-ins for DynamoDB and S3 on this machine, without Docker.

Everything listens on 127.0.0.1 on free ports and keeps its data and logs in one directory. What the environment
already names is used instead of started: HEADWATER_KAFKA__BOOTSTRAP_SERVERS, and AWS_ENDPOINT_URL with
AWS_ENDPOINT_URL_S3 (the latter counts only beside the former: dummy credentials never go where the user's S3 is).
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self
from urllib.parse import urlsplit

from headwater.lab import aws as stand_ins
from headwater.lab import kafka, processes
from headwater.lab.kafka import Broker
from headwater.lab.processes import LOOPBACK, Process
from pipeline.errors import HeadwaterError

BrokerChoice = Literal["auto", "kafka", "noida"]
AwsChoice = Literal["ministack", "dynamodb-local"]
Progress = Callable[[str], None]

EXTERNAL = "external"
REGION = "eu-west-1"
FILE = "stack.json"
BROKER_STOP_SECONDS = 30.0
DISK_NEEDED = 256 * 1024 * 1024
BOOTSTRAP = "HEADWATER_KAFKA__BOOTSTRAP_SERVERS"
AWS_URL = "AWS_ENDPOINT_URL"
S3_URL = "AWS_ENDPOINT_URL_S3"


@dataclass(frozen=True)
class Endpoints:
    """What runs and where. `broker`, `aws` and `s3` are names with versions, or "external": not started by us."""

    broker: str
    reason: str
    """Why this broker, in words."""
    bootstrap_servers: str
    aws: str
    aws_endpoint_url: str
    s3: str
    s3_endpoint_url: str
    directory: Path

    def environment(self) -> dict[str, str]:
        """Return the variables to lay over the environment, so that a worker or boto3 finds this stack.

        Dummy credentials go with stand-ins only, and then every endpoint that boto3 would ask is named, so that
        they are never sent to AWS. Where DynamoDB is external, the user's credentials and Region stay as they are; an
        external endpoint on this very machine gets dummy ones if the user has set none.
        """
        variables = {BOOTSTRAP: self.bootstrap_servers, AWS_URL: self.aws_endpoint_url, S3_URL: self.s3_endpoint_url}
        if self.broker != EXTERNAL:
            variables["HEADWATER_KAFKA__REPLICATION_FACTOR"] = "1"
        if self.s3_endpoint_url.startswith("http:"):
            variables["AWS_ALLOW_HTTP"] = "true"  # the lake's client asks for it
        if self.aws != EXTERNAL:
            return variables | self._only_the_stand_in() | _no_proxy()
        if _is_local(self.aws_endpoint_url) and not {"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} & set(os.environ):
            variables |= _dummy_credentials() | {"AWS_DEFAULT_REGION": os.environ.get("AWS_DEFAULT_REGION", REGION)}
        return variables

    def _only_the_stand_in(self) -> dict[str, str]:
        services = ("DYNAMODB", "DYNAMODB_STREAMS", "KINESIS", "STS")  # each name wins over AWS_ENDPOINT_URL
        return {
            **{f"{AWS_URL}_{service}": self.aws_endpoint_url for service in services},
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            **_dummy_credentials(),
        }


class ProcessStatus(NamedTuple):
    """A process of a local stack, as `local_status` finds it."""

    name: str
    pid: int
    alive: bool
    address: str


class Stack:
    """A broker and AWS stand-ins, from `start` to `stop`.

    Unless `detached`, the processes also end when this one does, however that happens. What runs is written to
    `directory/stack.json`, so `local_status` and `local_down` work for every stack; one directory holds one stack.
    """

    def __init__(
        self,
        directory: Path,
        *,
        broker: BrokerChoice = "auto",
        aws: AwsChoice = "ministack",
        detached: bool = False,
        second: bool = False,
        progress: Progress,
    ) -> None:
        """`second`: a second broker too, another cluster; not beside the fallback broker, which is busy enough."""
        self._second = second
        self.other_servers = ""
        """The address of the second broker; '' for none."""
        self.directory = directory.absolute()
        self.endpoints: Endpoints | None = None
        self._broker_choice = broker
        self._aws_choice = aws
        self._detached = detached
        self._progress = progress
        self._broker: Broker | None = None
        self._broker_process: Process | None = None
        self._others: list[Process] = []

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    @property
    def processes(self) -> list[Process]:
        """Return what was started and not stopped."""
        return ([self._broker_process] if self._broker_process else []) + self._others

    def start(self) -> Endpoints:
        """Start all parts and return when they serve; on failure stop them again and raise HeadwaterError."""
        _claim(self.directory)
        try:
            self.endpoints = self._start(os.environ)
            self._record()
        except OSError as error:
            self.stop()
            raise _unusable(self.directory, error) from error
        except BaseException:  # Ctrl-C too
            self.stop()
            raise
        return self.endpoints

    def stop(self) -> None:
        """End all parts: ask, wait, then kill. Data and logs stay."""
        processes.stop(self.processes)
        self._broker_process, self._others, self.endpoints = None, [], None
        (self.directory / FILE).unlink(missing_ok=True)

    def kill_broker(self) -> None:
        """Kill the broker by SIGKILL and return when it is gone."""
        self._end_broker(grace=0)

    def stop_broker(self) -> None:
        """Ask the broker to end, and return when it has; kill it when it takes too long."""
        self._end_broker(grace=BROKER_STOP_SECONDS)

    def _end_broker(self, grace: float) -> None:
        if self._broker_process is None:
            raise HeadwaterError("the broker was not started by this stack, or is dead already")
        processes.stop([self._broker_process], grace=grace)
        self._broker_process = None
        self._record()

    def start_broker(self) -> None:
        """Start the broker again, on the same port and the same data, and return when it serves."""
        if self._broker is None or self._broker_process is not None:
            raise HeadwaterError("the broker was not started by this stack, or runs already")
        self._launch_broker(self._broker)
        self._wait_for_broker(self._broker)

    def _start(self, environment: Mapping[str, str]) -> Endpoints:
        servers, url = environment.get(BOOTSTRAP), environment.get(AWS_URL)
        if servers:
            kafka.require_reachable(servers)
        else:
            self._broker = kafka.choose(self._broker_choice, self.directory / "broker", self._progress)
            self._progress(f"starting {self._broker.name} ({self._broker.reason})")
            self._launch_broker(self._broker)
        is_small = self._broker is not None and self._broker.name.startswith("noida")
        other = self._launch_second() if self._second and not is_small else None
        dynamodb, s3 = self._start_aws(url, environment.get(S3_URL))
        if self._broker is not None:  # after the others were started: they come up while it does
            self._wait_for_broker(self._broker)
        if other is not None:
            other[0].wait_until_ready(other[1])
            self.other_servers = other[0].address
        return Endpoints(
            broker=self._broker.name if self._broker else EXTERNAL,
            reason=self._broker.reason if self._broker else f"{BOOTSTRAP} names it",
            bootstrap_servers=self._broker.address if self._broker else servers or "",
            aws=dynamodb[0],
            aws_endpoint_url=dynamodb[1],
            s3=s3[0],
            s3_endpoint_url=s3[1],
            directory=self.directory,
        )

    def _start_aws(self, url: str | None, s3_url: str | None) -> tuple[tuple[str, str], tuple[str, str]]:
        """Start what is not there; return name and URL of DynamoDB, and of S3."""
        dynamodb = s3 = None
        if url:
            dynamodb = EXTERNAL, url
            if stand_ins.speaks_s3(url) or s3_url:
                s3 = EXTERNAL, s3_url or url
        if dynamodb is None and self._aws_choice == "dynamodb-local":
            dynamodb = self._launch(stand_ins.dynamodb_local(self.directory / "dynamodb-local", self._progress))
        if dynamodb is None or s3 is None:
            started = self._launch(stand_ins.ministack(self.directory / "ministack", self._progress))
            dynamodb, s3 = dynamodb or started, s3 or started
        return dynamodb, s3

    def _launch(self, part: stand_ins.StandIn) -> tuple[str, str]:
        self._progress(f"starting {part.name}")
        process = part.start(detached=self._detached)
        self._others.append(process)
        self._record()
        part.wait_until_ready(process)
        return part.name, part.url

    def _launch_second(self) -> tuple[Broker, Process]:
        broker = kafka.choose(self._broker_choice, self.directory / "other-broker", self._progress)
        self._progress(f"starting {broker.name}, a second cluster")
        process = broker.start(detached=self._detached)
        self._others.append(process)
        self._record()
        return broker, process

    def _launch_broker(self, broker: Broker) -> None:
        self._broker_process = broker.start(detached=self._detached)
        self._record()

    def _wait_for_broker(self, broker: Broker) -> None:
        if self._broker_process is not None:
            broker.wait_until_ready(self._broker_process)

    def _record(self) -> None:
        content = {
            "processes": [asdict(process) for process in self.processes],
            "endpoints": asdict(self.endpoints) if self.endpoints else None,
        }
        partial = self.directory / f"{FILE}.partial"
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n")
        partial.replace(self.directory / FILE)


def local_up(
    directory: Path, broker: BrokerChoice = "auto", aws: AwsChoice = "ministack", *, progress: Progress
) -> Endpoints:
    """Start a stack that outlives this process, and return its endpoints; of one that runs in `directory`, its own.

    Raise HeadwaterError where only some of its parts run.
    """
    if (running := local_endpoints(directory)) is not None and local_status(directory):
        progress(f"a local stack is running in {directory} already")
        return running
    return Stack(directory, broker=broker, aws=aws, detached=True, progress=progress).start()


def local_down(directory: Path) -> list[ProcessStatus]:
    """Stop the stack of a directory, wherever it was started; return what was running."""
    found, _ = _recorded(directory)
    running = [_status(process) for process in found if process.alive()]
    processes.stop(found)
    (directory / FILE).unlink(missing_ok=True)
    return running


def local_status(directory: Path) -> list[ProcessStatus]:
    """Return the processes of the stack of a directory: empty if there is none."""
    return [_status(process) for process in _recorded(directory)[0]]


def local_endpoints(directory: Path) -> Endpoints | None:
    """Return the endpoints of the stack that runs in a directory, None if there is none."""
    found, endpoints = _recorded(directory)
    return endpoints if all(process.alive() for process in found) else None


def _claim(directory: Path) -> None:
    """Make the directory; raise HeadwaterError if a stack runs in it or its disk is full."""
    if any(status.alive for status in local_status(directory)):
        raise HeadwaterError(
            f"{directory}: a local stack is running there", hint=f"headwater local down --dir {directory}"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise _unusable(directory, error) from error
    if free < DISK_NEEDED:
        raise HeadwaterError(
            f"{directory}: the disk is full ({free // 2**20} MiB free, {DISK_NEEDED // 2**20} needed)",
            hint=f"df -h {directory}",
        )


def _unusable(directory: Path, error: OSError) -> HeadwaterError:
    look = "df -h" if error.errno == errno.ENOSPC else "ls -ld"
    where = error.filename or directory
    return HeadwaterError(f"{where}: {error.strerror or error}", hint=f"{look} {where}")


def _recorded(directory: Path) -> tuple[list[Process], Endpoints | None]:
    try:
        content = json.loads((directory / FILE).read_text())
        found = [Process(**{**fields, "log": Path(fields["log"])}) for fields in content["processes"]]
        shown = content["endpoints"]
        return found, Endpoints(**{**shown, "directory": Path(shown["directory"])}) if shown else None
    except (FileNotFoundError, NotADirectoryError):
        return [], None
    except OSError as error:
        raise _unusable(directory / FILE, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise HeadwaterError(
            f"{directory / FILE}: not written by this version of Headwater", hint=f"rm {directory / FILE}"
        ) from error


def _status(process: Process) -> ProcessStatus:
    return ProcessStatus(process.name, process.pid, process.alive(), process.address)


def _dummy_credentials() -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": "headwater", "AWS_SECRET_ACCESS_KEY": "headwater", "AWS_SESSION_TOKEN": ""}


def _no_proxy() -> dict[str, str]:
    """Keep requests to the stand-ins from a proxy that the environment may name."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    both = f"{hosts},{LOOPBACK}" if hosts else LOOPBACK
    return {"NO_PROXY": both, "no_proxy": both}


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
