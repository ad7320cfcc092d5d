"""What functions of users import: `from headwater import DROP, Change, enrich`. To try them: `headwater.testing`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.steps.python import DROP, Change, enrich

__all__ = ["DROP", "Change", "enrich"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the command line, which is in this package too, does without."""
    if name in __all__:
        return getattr(import_module("pipeline.steps.python"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
