"""The end of a process that must not go on."""

from __future__ import annotations

import subprocess
import sys


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_a_call_that_does_not_return_ends_the_process_with_the_reason() -> None:
    done = run(
        "import threading\n"
        "from pipeline.transport.fatal import ends_process_after\n"
        "with ends_process_after(0.2, 'no answer'):\n"
        "    threading.Event().wait()\n"
    )
    assert done.returncode == 1
    assert "headwater: no answer (try: start the worker again" in done.stderr


def test_a_call_that_returns_in_time_ends_nothing() -> None:
    done = run(
        "import threading\n"
        "from pipeline.transport.fatal import ends_process_after\n"
        "with ends_process_after(0.2, 'no answer'):\n"
        "    pass\n"
        "threading.Event().wait(0.5)\n"
        "print('on')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")
