"""Logs as JSON: every line is a document, by every process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl_queue.common import logs


def line(message: str, *arguments: object) -> dict[str, object]:
    record = logging.LogRecord(
        "fl_queue.coordinator.operations.healer", logging.WARNING, "x", 1, message, arguments, None
    )
    parsed: dict[str, object] = json.loads(logs.JsonFormatter().format(record))
    return parsed


def test_what_a_message_is_about_are_fields() -> None:
    found = line("run=%s round=%s healed: %s", "demo-3f2a9c", 3, 'job of "a=b" failed')

    assert found["run"] == "demo-3f2a9c"
    assert found["round"] == 3
    assert found["message"] == 'healed: job of "a=b" failed'
    assert (found["level"], found["logger"]) == (
        "WARNING",
        "fl_queue.coordinator.operations.healer",
    )


def test_a_message_about_nothing_stays_whole_and_on_one_line() -> None:
    assert line("two\nlines, a=b")["message"] == "two\nlines, a=b"
    assert "\n" not in logs.JsonFormatter().format(
        logging.LogRecord("x", logging.INFO, "x", 1, "two\nlines", (), None)
    )


@pytest.mark.parametrize(
    ("options", "environment"), [(["--log-format", "json"], {}), ([], {"FLQ_LOG": "json"})]
)
def test_an_error_of_a_command_is_a_document(
    tmp_path: Path, options: list[str], environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "fl_queue", *options, "status", "--state-dir", str(tmp_path)]
    plain = {key: value for key, value in os.environ.items() if key != "FLQ_LOG"}
    done = subprocess.run(command, capture_output=True, text=True, env=plain | environment)

    assert done.returncode == 5
    found = json.loads(done.stderr)
    assert found["exit_code"] == 5
    assert "fl-queue redis" in found["message"]


def test_workers_log_in_the_configured_format() -> None:
    code = (
        "import logging; from fl_queue.common.logs import set_up_worker; set_up_worker();"
        "logging.getLogger('fl_queue').info('run=%s round=%s trained', 'r-1', 2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "FLQ_LOG": "json"},
    )

    assert json.loads(done.stderr)["round"] == 2
