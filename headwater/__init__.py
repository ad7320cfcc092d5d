"""What functions of users import: `from headwater import DROP, Change, enrich`. To try them: `headwater.testing`."""

from __future__ import annotations

from pipeline.steps.python import DROP, Change, enrich

__all__ = ["DROP", "Change", "enrich"]
