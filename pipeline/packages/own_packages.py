"""Headwater's own packages come first: `agents`, `models` and `pipeline` are names that users have, too.

Importing this module puts a finder in front of all others that knows these three names alone, and finds them beside this
package. So a user's `models.py` in the working directory, or a `models/` on PYTHONPATH, never takes the place of ours. What is
hidden by that is told by `hidden`. Only the standard library is imported here: this runs before everything else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

NAMES = ("agents", "models", "pipeline")
ROOT = str(Path(__file__).resolve().parents[2])
OWN_ENVIRONMENT = "uv tool install headwater"
"""What gives Headwater an environment of its own."""


class OwnPackages:
    """Finds our packages where we are, whatever `sys.path` says; asks nothing about any other name."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where our package is, None for any other module."""
        return PathFinder.find_spec(name, [ROOT]) if name in NAMES else None


class Hidden(NamedTuple):
    """A file or directory of somebody else that has the name of a package of ours."""

    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.path} is hidden: {self.name} is the name of a package of Headwater, which is imported instead"


def put_first() -> None:
    """Have our packages found first from now on; raise ImportError where another is in their place already."""
    for name in NAMES:
        if (module := sys.modules.get(name)) is not None and not _is_ours(module):
            raise ImportError(
                f"Headwater has a package named {name}, and so has {_place_of(module)}, which is loaded already "
                f"(try: rename that one, or give Headwater an environment of its own: {OWN_ENVIRONMENT})",
                name=name,
            )
    if OwnPackages not in sys.meta_path:
        sys.meta_path.insert(0, OwnPackages)


def hidden(path: Iterable[str] | None = None) -> list[Hidden]:
    """Return what of others our packages hide, in the working directory and on the path."""
    entries = dict.fromkeys(os.path.realpath(entry) for entry in [os.curdir, *(sys.path if path is None else path)])
    return [
        Hidden(name, found) for entry in entries if entry != ROOT for name in NAMES if (found := candidate(entry, name))
    ]


def overwriting() -> list[str]:
    """Return the distributions beside us that have files of the same names: who came last has overwritten the other."""
    from importlib.metadata import distributions  # noqa: PLC0415 - half of the time of this module, and seldom needed

    ours = {f"{name}/__init__.py" for name in NAMES} | {f"{name}.py" for name in NAMES}
    found = []
    for distribution in distributions(path=[ROOT]):
        files = {line.partition(",")[0] for line in (distribution.read_text("RECORD") or "").splitlines()}
        if files & ours:
            found.append(distribution.metadata["Name"])
    return sorted(name for name in found if name != "headwater") if "headwater" in found else []


def candidate(entry: str, name: str) -> str:
    """Return the package or module of this name in a directory, '' where there is none.

    A directory without Python files is none: `models/` may hold anything.
    """
    package = os.path.join(entry, name)  # noqa: PTH118 - pathlib takes ten times as long, at each start
    for file in (os.path.join(package, "__init__.py"), f"{package}.py"):  # noqa: PTH118
        if os.path.isfile(file):  # noqa: PTH113
            return file
    try:
        return package if any(one.endswith(".py") for one in os.listdir(package)) else ""  # noqa: PTH208
    except OSError:
        return ""


def _is_ours(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().parents[1] == Path(ROOT)


def _place_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "another program")


put_first()
