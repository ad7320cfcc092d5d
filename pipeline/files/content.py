"""What a file that the user has named holds."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UsageError


def content(file: Path) -> bytes:
    """Return what a file that the user has named holds; raise UsageError when it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", hint=f"ls {file.parent}") from error
