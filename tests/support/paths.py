"""Where the tests find files of the repository."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
EVENTS = TESTS / "events"
"""Records as AWS documents them."""
SCHEMAS = TESTS / "schemas"
BEFORE = TESTS / "fixtures" / "before"
"""What the version before has left."""
