"""A small disk that a directory has to itself: a tmpfs, which can be filled and lost. Needs the right to mount."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from pipeline.errors import HeadwaterError

SIZE = 256 << 20
FILLER = "filler"


def why_not(directory: Path) -> str | None:
    """Return why no disk can be mounted below this directory, in words; None if one can."""
    probe = Disk(directory / "probe")
    try:
        probe.mount()
    except HeadwaterError as error:
        return error.message
    probe.unmount()
    return None


class Disk:
    """The disk of one directory, from `mount` to `unmount`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def mount(self) -> None:
        """Give the directory an empty disk; raise HeadwaterError where that is not allowed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "headwater-chaos", str(self.directory))

    def unmount(self) -> None:
        """Take the disk away, with all that is on it, whoever uses it."""
        _run("umount", "--lazy", str(self.directory))

    def lose(self) -> None:
        """Lose what is on the disk: an empty one takes its place."""
        self.unmount()
        self.mount()

    def fill(self) -> None:
        """Take all the space that is left; may be called again, for what has come free."""
        with (self.directory / FILLER).open("ab") as filler:
            left = shutil.disk_usage(self.directory).free
            while left > 0:
                try:
                    os.posix_fallocate(filler.fileno(), filler.tell(), left)
                    filler.seek(0, os.SEEK_END)
                except OSError:  # somebody else was quicker
                    left //= 2
                else:
                    left = shutil.disk_usage(self.directory).free

    def free(self) -> None:
        """Give the space back."""
        (self.directory / FILLER).unlink(missing_ok=True)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except OSError as error:
        raise HeadwaterError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise HeadwaterError(done.stderr.strip() or f"{command[0]} failed")
