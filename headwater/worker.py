"""Faust's command line with our packages first: `python -P -m headwater.worker -A pipeline.worker worker`.

`-P` keeps the working directory off the path, where `python -m faust` puts it first. Here it goes to the end, for modules of
users: Faust then leaves the path as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

COMMAND = ("-P", "-m", "headwater.worker")
"""What follows the name of the Python, before Faust's own arguments."""


def main() -> None:
    """Run Faust."""
    from faust.cli.faust import cli  # noqa: PLC0415 - after the path is as it should be

    cli()


if __name__ == "__main__":
    sys.path.append(str(Path.cwd()))
    main()
