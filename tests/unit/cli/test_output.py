"""With ``--json`` an error is a JSON object on standard error, and standard output stays JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def fl_queue(*arguments: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fl_queue", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "FLQ_STATE_DIR": str(home), **environ},
    )


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "words"),
    [
        (["status", "-r", "redis://127.0.0.1:1/0", "--json"], 5, "StoreUnavailable", "127.0.0.1:1"),
        (["config", "show", "mnist-2n", "--json"], 2, "ConfigError", "did you mean mnist-2nn?"),
        (["try-task", "demo", "--data", "/absent", "--json"], 3, "DataError", "/absent"),
        (["statuss", "--json"], 2, "UsageError", "did you mean status?"),
        (["status", "--jsn", "--json"], 2, "UsageError", "--jsn"),
        (["history", "--json"], 2, "UsageError", "RUN"),
    ],
)
def test_an_error_is_a_json_object(
    tmp_path: Path, arguments: list[str], code: int, kind: str, words: str
) -> None:
    done = fl_queue(*arguments, home=tmp_path)

    assert done.returncode == code
    assert done.stdout == ""
    error = json.loads(done.stderr)["error"]
    assert error.keys() == {"code", "type", "message"}
    assert (error["code"], error["type"]) == (code, kind)
    assert words in error["message"]


def test_without_json_an_error_is_a_line(tmp_path: Path) -> None:
    done = fl_queue("status", "-r", "redis://127.0.0.1:1/0", home=tmp_path)

    assert done.returncode == 5
    assert done.stderr.startswith("Error: Redis at redis://127.0.0.1:1/0: ")
    assert done.stderr.count("\n") == 1


def test_results_are_json(tmp_path: Path) -> None:
    made = fl_queue("new", "mine", "--into", str(tmp_path / "mine"), "--json", home=tmp_path)
    assert len(json.loads(made.stdout)["files"]) == 4

    digest = fl_queue("config", "show", "demo", "--digest", "--json", home=tmp_path)
    plain = fl_queue("config", "show", "demo", "--digest", home=tmp_path)
    assert json.loads(digest.stdout) == {"digest": plain.stdout.strip()}
