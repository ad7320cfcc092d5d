"""File access of pyiceberg that counts its calls, and lists what a table's location holds."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from pyarrow.fs import FileSelector, FileType
from pyiceberg.io import InputFile, OutputFile
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO
from pyiceberg.table import Table

COUNTED = "headwater.count-as"
"""Property of a catalog: under which name calls are counted."""
_counts: dict[str, Counter[str]] = {}
_lock = threading.Lock()


class CountingFileIO(PyArrowFileIO):
    """pyiceberg's own, by pyarrow; counts the files that are read, written and deleted.

    A file that is read takes a request for its size and one or more for its content, as pyarrow cuts them.
    """

    def _count(self, what: str) -> None:
        with _lock:
            _counts.setdefault(self.properties.get(COUNTED, ""), Counter())[what] += 1

    def new_input(self, location: str) -> PyArrowFile:
        """Return a file to be read."""
        self._count("read")
        return super().new_input(location)

    def new_output(self, location: str) -> PyArrowFile:
        """Return a file to be written."""
        self._count("written")
        return super().new_output(location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Delete a file."""
        self._count("deleted")
        super().delete(location)


def counted(name: str) -> dict[str, int]:
    """Return what was counted under a name, and forget it."""
    with _lock:
        return dict(_counts.pop(name, Counter()))


class ListedFile(NamedTuple):
    """A file in a table's location."""

    location: str
    """As the table would name it."""
    size: int
    modified: datetime


def files_below(table: Table) -> Iterator[tuple[str, ListedFile]]:
    """Yield the files of a table's data and metadata, by `path_of` their locations."""
    location = table.location().rstrip("/")
    scheme, netloc, root = PyArrowFileIO.parse_location(location, table.io.properties)
    files = PyArrowFileIO(table.io.properties).fs_by_scheme(scheme, netloc)
    for folder in ("data", "metadata"):
        for found in files.get_file_info(FileSelector(f"{root}/{folder}", recursive=True, allow_not_found=True)):
            if found.type == FileType.File:
                below = found.path[len(root) :]
                yield found.path, ListedFile(f"{location}{below}", found.size, found.mtime)


def location_path(table: Table, location: str) -> str:
    """Return the path of a location in its store, however it is spelt."""
    return PyArrowFileIO.parse_location(location, table.io.properties)[2]
