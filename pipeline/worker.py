"""The one module that builds the app at import, for `faust -A pipeline.worker worker`."""

from __future__ import annotations

import sys

from pipeline.errors import HeadwaterError
from pipeline.packages import missing
from pipeline.runtime.app import create_app
from pipeline.settings.load import load

try:
    app = create_app(load())
except HeadwaterError as error:
    sys.stderr.write(f"headwater: {error}\n")
    sys.exit(error.exit_code)
except ModuleNotFoundError as error:
    if (explained := missing.explained(error)) is None:
        raise
    sys.stderr.write(f"headwater: {explained}\n")
    sys.exit(explained.exit_code)
