"""The machinery: what moves changes from AWS through Kafka to their destinations. CONTRIBUTING.md has the map.

Each folder is a wing; imports go down only, and import-linter holds that. `worker.py` is what `faust -A pipeline.worker` loads.
Not here: the command line and the lab (`headwater`), the agents (`agents`), what flows (`models`).
"""

from __future__ import annotations

import pipeline.packages.own_packages  # noqa: F401 - before anything else of ours is looked for
