"""What functions of users import: `from headwater import DROP, Change, enrich`. To try them: `headwater.testing`."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _load_our_pipeline() -> None:
    """Load `pipeline` from beside this package, not from where else the path may have one; it puts the others first."""
    if "pipeline" in sys.modules:
        return
    spec = PathFinder.find_spec("pipeline", [str(Path(__file__).resolve().parents[1])])
    if spec is None or spec.loader is None:
        return  # the import below says what is missing
    sys.modules["pipeline"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


_load_our_pipeline()

try:
    from pipeline.steps.python import DROP, Change, enrich
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("pipeline"):
        raise
    where = getattr(sys.modules.get("pipeline"), "__file__", None) or "another package"
    raise ImportError(
        f"Headwater has a package named pipeline, and so has {where}, which is loaded already "
        "(try: rename that one, or give Headwater an environment of its own: uv tool install headwater)",
        name="pipeline",
    ) from error

__all__ = ["DROP", "Change", "enrich"]
