"""The machinery: settings, transport, state, sources, steps, sinks, operation. Importing it puts our packages first."""

from __future__ import annotations

import pipeline.own_packages  # noqa: F401 - before anything of ours is looked for
