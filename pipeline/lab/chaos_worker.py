"""The worker of the chaos: like `pipeline.worker`, and it kills itself where it is told to."""

from __future__ import annotations

from pipeline.app import create_app
from pipeline.lab.killer import Killer
from pipeline.settings import load

settings = load()
app = create_app(settings)
app.worker.transport.participants.insert(0, Killer(settings.state_dir))
