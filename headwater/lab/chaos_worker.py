"""The worker of the chaos: like `pipeline.worker`, but it kills where it is told to, and writes its state to files often."""

from __future__ import annotations

from headwater.lab.killer import Killer
from pipeline.runtime.app import create_app
from pipeline.settings.load import load
from pipeline.state.seen import SeenTable

RECENT = 5_000
"""IDs in memory: so few that files are written every few seconds, and a full disk is felt at once."""

settings = load()
app = create_app(settings)
for participant in app.worker.transport.participants:
    if isinstance(participant, SeenTable):
        participant.recent = RECENT
app.worker.transport.participants.insert(0, Killer(settings.state_dir))
