"""The systems that are compared: how each is prepared once, and started on topics of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from headwater.lab import cache, kafka, processes
from headwater.lab.processes import Process
from headwater.lab.workers import Workers
from pipeline.errors import HeadwaterError

HERE = Path(__file__).parent
QUIX = HERE / "quix"
STREAMS = HERE / "kafka_streams"
QUIX_CACHE = "bench-quix"
Say = Callable[[str], None]


@dataclass(frozen=True)
class SystemPlace:
    """Where one run happens: nothing in it was used before."""

    servers: str
    prefix: str
    directory: Path

    @property
    def source(self) -> str:
        """The topic with the input."""
        return f"{self.prefix}.ingest"

    @property
    def output(self) -> str:
        """The topic for the output."""
        return f"{self.prefix}.raw"

    @property
    def changelog(self) -> str:
        """The changelog of the state, where the system lets us name it."""
        return f"{self.prefix}.seen"

    @property
    def state(self) -> Path:
        """The directory of the state."""
        return self.directory / "state"


@dataclass(frozen=True)
class System:
    """One system. The consumer group is the place's prefix."""

    key: str
    title: str
    start: Callable[[SystemPlace], Process]
    prepare: Callable[[Say], None] = lambda say: None
    share: int = 1
    """It gets one n-th of the messages: it is too slow for more."""
    least: int = 0
    """But not fewer than so many."""

    def messages(self, count: int) -> int:
        """Return how many messages it gets where the others get `count`."""
        return count if self.share == 1 else max(count // self.share, min(count, self.least))


def ours() -> list[System]:
    """Return the systems that need nothing but Headwater's own environment."""
    return [
        System("hand_written", "Loop by hand, exactly once", _hand_written),
        System("faust_idiomatic", "Textbook Faust, at least once", _faust_idiomatic, share=20, least=10_000),
        System(
            "faust_on_headwater",
            "The same Faust app on headwater://, exactly once",
            partial(_faust_idiomatic, transport="headwater"),
            share=4,
            least=10_000,
        ),
        System("headwater_at_least_once", "Headwater, at least once", partial(headwater, guarantee="at_least_once")),
        System("headwater_exactly_once", "Headwater, exactly once", partial(headwater, guarantee="exactly_once")),
    ]


def peers() -> list[System]:
    """Return the peers; their `prepare` raises HeadwaterError where their tools are missing."""
    return [
        System(
            "quix_at_least_once",
            "Quix Streams, at least once",
            partial(_quix, guarantee="at-least-once"),
            prepare_quix,
        ),
        System(
            "quix_exactly_once", "Quix Streams, exactly once", partial(_quix, guarantee="exactly-once"), prepare_quix
        ),
        System("kafka_streams_exactly_once", "Kafka Streams, exactly once", _kafka_streams, prepare_kafka_streams),
    ]


def headwater(place: SystemPlace, guarantee: str = "exactly_once") -> Process:
    """Start the real worker with the deduplicate agent."""
    return worker_process(workers_of(place, guarantee))


def worker_process(workers: Workers) -> Process:
    """Start the workers; return the process of the first."""
    workers.start()
    process = workers.all[0].process
    if process is None:
        raise HeadwaterError("the worker was not started")
    return process


def workers_of(place: SystemPlace, guarantee: str = "exactly_once") -> Workers:
    """Return one worker, not started; its state directory is `worker-1.state`."""
    return Workers(
        1,
        place.directory,
        {
            "HEADWATER_AGENTS": '["deduplicate"]',
            "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": place.servers,
            "HEADWATER_KAFKA__REPLICATION_FACTOR": "1",
            "HEADWATER_PARTITIONS": "4",
            "HEADWATER_PREFIX": place.prefix,
            "HEADWATER_PROCESSING_GUARANTEE": guarantee,
        },
    )


def run_module(
    place: SystemPlace, module: str, arguments: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})
) -> Process:
    """Start a program of ours."""
    return _start(place, [sys.executable, "-m", module, *arguments], environment)


def _hand_written(place: SystemPlace) -> Process:
    return run_module(place, "headwater.lab.bench.hand_written", _arguments(place, place.changelog))


def _faust_idiomatic(place: SystemPlace, transport: str = "kafka") -> Process:
    return run_module(place, "headwater.lab.bench.faust_idiomatic", [*_arguments(place), transport])


def _quix(place: SystemPlace, guarantee: str) -> Process:
    return run_quix(place, "dedup.py", [*_arguments(place), guarantee])


def run_quix(place: SystemPlace, program: str, arguments: Sequence[str]) -> Process:
    """Start a program in the environment of Quix Streams."""
    python = cache.directory() / QUIX_CACHE / "bin" / "python"
    return _start(place, [str(python), "-I", str(QUIX / program), *arguments])


def _kafka_streams(place: SystemPlace) -> Process:
    return run_java(place, "Dedup", _arguments(place))


def run_java(place: SystemPlace, program: str, arguments: Sequence[str]) -> Process:
    """Start a program of Kafka Streams."""
    made = cache.directory() / _streams_cache()
    classes = f"{made / 'target' / 'classes'}{os.pathsep}{made / 'jars'}/*"
    java = ["java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Xmx1g", "-cp", classes]
    return _start(place, [*java, f"headwater.lab.{program}", *arguments])


def _arguments(place: SystemPlace, *more: str) -> list[str]:
    return [place.servers, place.prefix, place.source, place.output, *more, str(place.state)]


def _start(
    place: SystemPlace, command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})
) -> Process:
    place.directory.mkdir(parents=True, exist_ok=True)
    log = place.directory / "program.log"
    return processes.start(place.prefix, command, log=log, address="", environment=environment, detached=False)


def prepare_quix(say: Say) -> None:
    """Install Quix Streams into an environment of its own, once."""
    requirements = QUIX / "requirements.txt"
    if not cache.is_cached(QUIX_CACHE, requirements):
        say("installing Quix Streams from PyPI (once)")
    cache.cached(QUIX_CACHE, requirements, partial(_install, requirements))


def _install(requirements: Path, into: Path) -> None:
    what, again = f"what {requirements} names", f"pip download -r {requirements}"
    cache.fetch([sys.executable, "-m", "venv", "--clear", str(into)], what="a virtual environment", again=again)
    pip = [str(into / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
    cache.fetch(pip, what=what, again=again)


def prepare_kafka_streams(say: Say) -> None:
    """Build the programs of Kafka Streams, once."""
    name, pom = _streams_cache(), STREAMS / "pom.xml"
    if (kafka.java_version() or 0) < kafka.JAVA_NEEDED:
        raise HeadwaterError(
            f"there is no Java {kafka.JAVA_NEEDED} on PATH", hint="apt-get install default-jdk-headless"
        )
    if not cache.is_cached(name, pom):
        if shutil.which("mvn") is None:
            raise HeadwaterError("there is no Maven on PATH to build it with", hint="apt-get install maven")
        say("building the Kafka Streams program with Maven (once)")
    cache.cached(name, pom, _build)


def _build(into: Path) -> None:
    shutil.copytree(STREAMS, into, dirs_exist_ok=True)
    pom = into / "pom.xml"
    goals = ["compile", "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={into / 'jars'}"]
    cache.fetch(["mvn", "-q", "-B", "-f", str(pom), *goals], what=f"what {pom} names", again=f"mvn -f {pom} compile")


def _streams_cache() -> str:
    """Return a name that changes with the program: the cache looks at the pom only."""
    sources = b"".join(file.read_bytes() for file in sorted(STREAMS.rglob("*.java")))
    return f"bench-kafka-streams-{hashlib.sha256(sources).hexdigest()[:8]}"
