"""Code in a Python process of its own: what is imported in the tests' process does not count there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def words_of(
    code: str, *arguments: str, cwd: Path | None = None, **environment: str
) -> tuple[list[str], str]:
    """
    Run code, and return the words that it printed and its standard error.

    Raises:
        CalledProcessError: It ended with another status than 0.
        TimeoutExpired: It took more than two minutes.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.split(), done.stderr
