"""What Faust calls for each app that is made where Headwater is installed (the entry-point group `faust.fixups`)."""

from __future__ import annotations

from typing import Any

from faust.fixups.base import Fixup as FaustFixup
from faust.types import AppT

SCHEME = "headwater"


class Fixup(FaustFixup):
    """Prepares an app whose broker is `headwater://...`, when it has read its settings. It leaves others alone."""

    def __init__(self, app: AppT) -> None:
        super().__init__(app)
        app.on_after_configured.connect(self._configured)

    def enabled(self) -> bool:
        """Return True: whether the app is one of ours is known when it is configured."""
        return True

    def _configured(self, *_: Any, **__: Any) -> None:
        # Not by its name: that would count as use, and Faust warns of changes after it.
        if all(url.scheme != SCHEME for url in object.__getattribute__(self.app.conf, "broker")):
            return
        from pipeline.apps.prepare import prepare  # noqa: PLC0415 - not for apps of other transports

        prepare(self.app)
