"""One of Faust's stress applications, as its own `faust` command: python stress_app.py NAME worker|produce ...

Run in the directory that has Faust's tests as `t`, their name when they were written.
Raven, which they import to report to a service, runs on no Python of today: they get an empty one.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def without_raven() -> None:
    """Put empty modules where the applications look for raven: without a SENTRY_DSN they use nothing of it."""
    for name, members in {
        "raven": ["Client"],
        "raven.handlers": [],
        "raven.handlers.logging": ["SentryHandler"],
        "raven_aiohttp": ["AioHttpTransport"],
    }.items():
        module: Any = ModuleType(name)
        for member in members:
            setattr(module, member, object)
        sys.modules[name] = module


def main() -> None:
    """Run the command line of the application."""
    name = sys.argv.pop(1)
    sys.path.insert(0, str(Path.cwd()))
    without_raven()
    importlib.import_module(f"t.stress.tests.{name}").app.main()


if __name__ == "__main__":
    main()
