"""Where something was measured, in words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path


def describe(broker: str) -> str:
    """Describe this machine and what ran on it, in one line."""
    name = cpu_name(_read(Path("/proc/cpuinfo"))) or platform.machine()
    memory = re.search(r"MemTotal:\s+(\d+)", _read(Path("/proc/meminfo")))
    gib = f"{int(memory[1]) / 2**20:.0f} GiB, " if memory else ""
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}" for package in ("confluent-kafka", "rocksdict")
    )
    return (
        f"{broker} on the same machine: {os.cpu_count()} x {name}, {gib}"
        f"Linux {platform.release()}, Python {platform.python_version()}, {versions}"
    )


def cpu_name(cpuinfo: str) -> str:
    """Return the processor's name from /proc/cpuinfo."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
