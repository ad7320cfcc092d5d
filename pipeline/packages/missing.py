"""Packages that are not installed: which extra of Headwater has them, by its own metadata."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from types import TracebackType

from pipeline.errors import HeadwaterError
from pipeline.packages.own_packages import NAMES, OWN_ENVIRONMENT, overwriting

WHAT = {
    "lake": "the lake",
    "iceberg": "an Iceberg table",
    "sql": "a step of the kind sql",
    "pubsub": "the Pub/Sub sink",
    "registry": "the schema registry",
    "lab": "the lab (demo, local, simulate)",
}
"""By extra: what needs it. Where several extras have a package, the first of these is named, unless the import tells more."""
DISTRIBUTIONS = {
    "aiohttp": "aiohttp",
    "duckdb": "duckdb",
    "fastavro": "fastavro",
    "google.api_core": "google-cloud-pubsub",
    "google.auth": "google-cloud-pubsub",
    "google.cloud": "google-cloud-pubsub",
    "google.protobuf": "protobuf",
    "noida_db": "noida-db",
    "numpy": "numpy",
    "obstore": "obstore",
    "pyarrow": "pyarrow",
    "pyiceberg": "pyiceberg",
    "sqlalchemy": "pyiceberg",
}
"""By module: the distribution that brings it, where an extra has it. A test compares it with pyproject.toml."""
SHARED = {"google": ("google-cloud-pubsub", "protobuf")}
"""Namespaces of several distributions: where none of them is installed, Python names the namespace alone."""
MODULES = {extra: extra for extra in WHAT} | {"formats": "registry"}
"""By part of the name of a module of ours: the extra that it needs."""
BENCH = "headwater.lab.bench"


def explained(error: ModuleNotFoundError) -> HeadwaterError | None:
    """Return what to install, None where the missing module is one of ours: that is a fault of the program."""
    name = error.name or ""
    if name.startswith(BENCH):
        return HeadwaterError(
            "the benchmarks are in the repository of Headwater, not in the package", hint="make bench, in a checkout"
        )
    if name.partition(".")[0] in (*NAMES, "headwater"):
        return overwritten()
    wanted = SHARED.get(name) or _distributions(name)
    having = {extra: found for extra, names in extras().items() if (found := names.intersection(wanted))}
    named = [extra for extra in _named_by(error.__traceback__) if not having or extra in having]
    extra = next(iter(named), next((one for one in WHAT if one in having), None))
    if extra is None:
        return overwritten() or HeadwaterError(
            f"the module {name} is not installed",
            hint="install it, or Headwater again: pip install --force-reinstall headwater",
        )
    return HeadwaterError(
        f"{WHAT[extra]} needs {', '.join(having.get(extra, [name]))}, which is not installed",
        hint=f"pip install 'headwater[{extra}]'",
    )


def overwritten() -> HeadwaterError | None:
    """Return that another distribution has overwritten files of ours, None where none has."""
    others = overwriting()
    if not others:
        return None
    return HeadwaterError(
        f"{', '.join(others)} has files of the same names as Headwater, and each has overwritten some of the other",
        hint=f"give Headwater an environment of its own: {OWN_ENVIRONMENT}",
    )


def extras() -> dict[str, set[str]]:
    """Return the distributions of each extra, as the metadata of the installed Headwater say."""
    try:
        requirements = requires("headwater") or []
    except PackageNotFoundError:  # run from a directory, as the Lambda is
        return {}
    found: dict[str, set[str]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra == ['"]([\w.-]+)['"]""", requirement)
        if name and extra:
            found.setdefault(extra[1], set()).add(name[0].lower())
    return found


def _distributions(module: str) -> tuple[str, ...]:
    """Return the distribution that has a module, none where no extra has it."""
    while module and module not in DISTRIBUTIONS:
        module = module.rpartition(".")[0]
    return (DISTRIBUTIONS[module],) if module else ()


def _named_by(traceback: TracebackType | None) -> list[str]:
    """Return the extras that the names of our modules tell on the way to the import, the lab first, then the innermost."""
    found: list[str] = []
    while traceback is not None:
        parts = str(traceback.tb_frame.f_globals.get("__name__", "")).split(".")
        if parts[0] in (*NAMES, "headwater"):
            found += [MODULES[part] for part in parts if part in MODULES]
        traceback = traceback.tb_next
    found.reverse()
    return ["lab", *found] if "lab" in found else found
