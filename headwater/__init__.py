"""The face: the command line, the lab, and what functions of users import.

Those import `from headwater import DROP, Change, enrich`. To try them: `headwater.testing`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.steps.python import DROP, enrich
    from pipeline.steps.python import ChangeView as Change

__all__ = ["DROP", "Change", "enrich"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the command line, which is in this package too, does without."""
    if name in __all__:
        return getattr(import_module("pipeline.steps.python"), {"Change": "ChangeView"}.get(name, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _load_our_pipeline() -> None:
    """Load `pipeline` from beside this package, not from where else the path may have one; it puts the others first."""
    if "pipeline" not in sys.modules:
        spec = PathFinder.find_spec("pipeline", [str(Path(__file__).resolve().parents[1])])
        if spec is not None and spec.loader is not None:
            sys.modules["pipeline"] = module = module_from_spec(spec)
            spec.loader.exec_module(module)
    try:
        import_module("pipeline.packages.own_packages")
    except ModuleNotFoundError as error:
        where = getattr(sys.modules.get("pipeline"), "__file__", None) or "another package"
        raise ImportError(
            f"Headwater has a package named pipeline, and so has {where}, which is loaded already "
            "(try: rename that one, or give Headwater an environment of its own: uv tool install headwater)",
            name="pipeline",
        ) from error


_load_our_pipeline()
