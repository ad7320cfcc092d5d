"""Holds a lake against its manifests: every file whole and as it was written, every range of offsets there, none twice."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sinks import manifests
from pipeline.sinks.manifests import File, Manifest, Origin
from pipeline.sinks.objects import Objects
from pipeline.sinks.parquet import RANGE, range_of
from pipeline.sinks.paths import origin_of


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where."""

    what: str
    path: str
    detail: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was looked at, and what was found."""

    manifests: int
    files: int
    rows: int
    bytes: int
    gaps: int
    """Changes known to be lost before they came to the lake, as the manifests have them."""
    problems: tuple[Problem, ...]

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def read_manifests(objects: Objects, prefix: str = "") -> list[Manifest]:
    """Return the manifests below a prefix."""
    return [manifests.decode(objects.read(path)) for path in objects.paths(prefix) if manifests.is_manifest(path)]


def verify(
    objects: Objects,
    prefix: str = "",
    *,
    whole: bool = True,
    progress: Callable[[int, int], None] = lambda _n, _of: None,
) -> Checked:
    """Check what lies below a prefix. `whole`: read every file, not only whether it is there. Raises HeadwaterError."""
    found = read_manifests(objects, prefix)
    files = [file for manifest in found for file in manifest.files]
    there = {path for path in objects.paths(prefix) if path.endswith(".parquet")}
    problems = [
        Problem("not listed", path, "no manifest lists it: its flush is under way, or a worker was away for long")
        for path in sorted(there - {file.path for file in files})
    ]
    origins = {(origin.topic, origin.partition, origin.first) for file in files for origin in file.origins}
    for number, file in enumerate(files):
        if file.path not in there:
            problems.append(Problem("missing", file.path, f"{file.rows} rows are not there"))
        elif whole:
            problems += _check(objects.read(file.path), file, origins)
        progress(number + 1, len(files))
    for manifest in found:
        if manifest.rows != sum(file.rows for file in manifest.files):
            detail = f"says {manifest.rows} rows, its files have {sum(file.rows for file in manifest.files)}"
            problems.append(Problem("manifest", manifests.path_of(manifest.directory), detail))
    if not prefix:  # else the neighbours are not seen
        problems += _ranges(origin for file in files for origin in file.origins)
    gaps = {(gap.table, gap.shard, gap.noticed) for manifest in found for gap in manifest.gaps}
    rows, size = sum(file.rows for file in files), sum(file.bytes for file in files)
    return Checked(len(found), len(files), rows, size, len(gaps), tuple(problems))


def _check(content: bytes, file: File, origins: set[tuple[str, int, int]]) -> list[Problem]:
    """Return what is wrong with one file."""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return [Problem("altered", file.path, f"{len(content)} bytes, not the {file.bytes} that were written")]
    try:
        footer = pq.read_metadata(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        return [Problem("unreadable", file.path, str(error))]
    problems = []
    if footer.num_rows != file.rows:
        problems.append(Problem("rows", file.path, f"{footer.num_rows} rows, the manifest says {file.rows}"))
    if RANGE in (footer.metadata or {}):
        for path in range_of(footer.metadata).paths:
            origin = origin_of(path)
            if origin is not None and tuple(origin) not in origins:
                problems.append(Problem("missing", path, f"it was to be written with {file.path}"))
    return problems


def _ranges(origins: Iterable[Origin]) -> list[Problem]:
    """Return the offsets that are in no file, or in two."""
    problems, ends = [], dict[tuple[str, int], int]()
    for origin in sorted(set(origins), key=lambda one: (one.topic, one.partition, one.begin, one.first)):
        place, where = (origin.topic, origin.partition), f"{origin.topic}[{origin.partition}]"
        end = ends.get(place)
        if end is not None and origin.begin > end:
            problems.append(Problem("missing", where, f"offsets {end} to {origin.begin - 1} are in no file"))
        if end is not None and origin.first < end and origin.end != end:
            problems.append(Problem("twice", where, f"offsets from {origin.first} on are in two files"))
        ends[place] = max(end or 0, origin.end)
    return problems
