"""TAB in a real shell: commands, options, runs and configs, and silence where there is nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from tests.support.checkout import ROOT

#: Presses TAB at the end of the line in its arguments, as bash does, and prints what there would be.
BASH = """
. <(fl-queue completion bash)
pressed() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _fl_queue_completion fl-queue 2>/dev/null
    echo "${COMPREPLY[*]}"
}
"""


def asked(folder: Path, script: str, **variables: str) -> list[str]:
    """The lines a bash script prints, with `fl-queue` on its PATH."""
    program = folder / "fl-queue"
    program.write_text(f"#!{sys.executable}\nfrom fl_queue.cli import main\nmain()\n")
    program.chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "FLQ_STATE_DIR": str(folder / "state"),
        **variables,
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH + script],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_tab_in_bash(run: str, redis_urls: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    script = """
        pressed fl-queue start-
        pressed fl-queue export --be
        pressed fl-queue status law
        pressed fl-queue status --redis-url unix:///nowhere ""
        pressed fl-queue start-round mnist-3
        pressed fl-queue try-task mi
    """

    found = asked(tmp_path, script, FLQ_REDIS_URL=redis_urls[0], FLQ_REDIS_BLOB_URL=redis_urls[1])

    assert found == ["start-round", "--best", "lawful", "", "mnist-3v7", "mine.toml"]


def test_tab_in_zsh(tmp_path: Path) -> None:
    script = CliRunner().invoke(cli, ["completion", "zsh"]).stdout
    assert script.startswith("#compdef fl-queue\n")
    assert "_FL_QUEUE_COMPLETE=zsh_complete" in script

    if shutil.which("zsh") is None:
        pytest.skip("no zsh on PATH")
    (tmp_path / "_fl-queue").write_text(script)
    asked(tmp_path, f"zsh -n {tmp_path}/_fl-queue")
