"""
A run that began before modules stood in packages goes on with the code of today.

``run-before-packages.zip`` is a backup of a simulation of two clients (mnist-3v7, two rounds), written by the
commit before. Its digests are those of the machine that trained it; what is trained here may have other bits, so
new versions are compared with what ``verify`` computes from the kept updates.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_queue.store.embedded import server_pair
from tests.support.checkout import ROOT

BACKUP = ROOT / "tests/fixtures/run-before-packages.zip"
VERSIONS = {
    1: "72dff813444dd42c840bd955630387a6c76f80e1cf8d2872e2a3108ce6744949",
    2: "c179f22c26786370544d5b4e1e19a0537af64a04f5aa586c5c166d9d5b0614a4",
}
AS_BEFORE = (
    "clients.kind=simulation", "clients.count=2", "clients.processes=1", "model.keep_updates=true", "train.epochs=1",
)  # fmt: skip


def command(folder: Path, *arguments: str) -> str:
    state = ["--state-dir", str(folder / "state")]
    done = subprocess.run(
        [sys.executable, "-m", "fl_queue", *arguments, *state],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def history(folder: Path) -> dict[int, dict[str, Any]]:
    records = json.loads(command(folder, "history", "before", "--json"))["records"]
    return {record["round"]: record for record in records}


@pytest.mark.timeout(400)
def test_a_run_of_the_commit_before_goes_on_and_is_verified(tmp_path: Path) -> None:
    with server_pair.start(tmp_path / "state"):
        assert "completed at version 2" in command(tmp_path, "restore", str(BACKUP))
        before = history(tmp_path)
        settings = [part for setting in AS_BEFORE for part in ("--set", setting)]
        command(
            tmp_path,
            "start-round",
            "mnist-3v7",
            "--run",
            "before",
            "--rounds",
            "2",
            "--wait",
            *settings,
        )
        after = history(tmp_path)
        verified = json.loads(command(tmp_path, "verify", "before", "--json"))

    assert {number: before[number]["digest"] for number in VERSIONS} == VERSIONS
    assert {number: after[number] for number in before} == before
    assert [after[number]["outcome"] for number in sorted(after.keys() - before.keys())] == [
        "committed", "committed", "evaluated",
    ]  # fmt: skip
    assert after[4]["base_digest"] == VERSIONS[2]
    results = {found["version"]: found["result"] for found in verified}
    assert results == {1: "unknown", 2: "unknown", 3: "same", 4: "same"}
