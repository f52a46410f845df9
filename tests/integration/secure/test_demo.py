"""``fl-queue demo --secure``: what the guide of secure sums shows first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_demo_of_secure_rounds_ends_with_a_model(tmp_path: Path) -> None:
    """Keys are made by ``local_parties`` for its sites."""
    command = [
        sys.executable,
        "-m",
        "fl_queue",
        "demo",
        "--secure",
        "--clients",
        "3",
        "--rounds",
        "1",
    ]
    command += ["--json", "--output", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)

    assert json.loads(done.stdout)["version"] == 1
    assert "stage unmask, 3 clients" in done.stderr
