"""A provider of credentials for AWS that can be made to fail: a file that `credential_process` reads."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

MINUTE = 60.0
RENEWED, URGENT = 15 * MINUTE, 10 * MINUTE
"""botocore renews credentials that last for less, and gives up those that cannot be renewed and last for less than this."""
LASTS = 3.0
"""Seconds beyond that for which they last: so often they are renewed."""


class Provider:
    """Gives credentials that are renewed every few seconds, that must be renewed at once, or none."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._file, self._config, self._clock = directory / "credentials.json", directory / "aws-config", clock
        self._lasts, self.fails = RENEWED + LASTS, False
        directory.mkdir(parents=True, exist_ok=True)
        command = f"cat {shlex.quote(str(self._file))}"
        self._config.write_text(f"[default]\ncredential_process = {command}\n")
        self.renew()

    @property
    def environment(self) -> dict[str, str]:
        """What a worker needs to use it, and nothing that comes before it."""
        before = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        return {
            **dict.fromkeys(before, ""),
            "AWS_PROFILE": "default",
            "AWS_CONFIG_FILE": str(self._config),
            "AWS_SHARED_CREDENTIALS_FILE": str(self._config.with_name("none")),
        }

    def renew(self) -> None:
        """Write the credentials, which last from now on; to be called every second."""
        if self.fails:
            return
        until = datetime.fromtimestamp(self._clock() + self._lasts, UTC)
        known = {"Version": 1, "AccessKeyId": "headwater", "SecretAccessKey": "headwater", "SessionToken": "headwater"}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({**known, "Expiration": until.isoformat()}))
        new.replace(self._file)

    def hurry(self) -> None:
        """Give credentials that must be renewed within a second."""
        self._lasts = URGENT + 1
        self.renew()

    def fail(self) -> None:
        """Give none."""
        self.fails = True
        self._file.unlink()

    def work(self) -> None:
        """Give credentials again."""
        self.fails, self._lasts = False, RENEWED + LASTS
        self.renew()
