"""OpenTelemetry's SDK is not imported because redis-py is, and may be imported afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fl_queue.common import telemetry
from tests.support.python_process import words_of

SDK = "opentelemetry.sdk.metrics"
#: Stands for the real one; redis-py takes it as such.
INSTALLED = "MeterProvider = None\n"
WORDS = f"""
print("redis" in sys.modules, "{SDK}" in sys.modules)
import {SDK}
print("{SDK}" in sys.modules)
"""
#: ``python -m workers.evaluator``, which has no number and ends right after its imports.
WORKER = f"""
import runpy, sys
sys.argv = ["-m"]
import workers
sys.argv = ["workers.evaluator", ""]
try:
    runpy.run_module("workers.evaluator", run_name="__main__")
except ValueError:
    pass
{WORDS}
"""
COMMAND = f"""
import sys
from fl_queue.cli import cli
cli.get_command(None, "doctor")
{WORDS}
"""


@pytest.mark.parametrize("code", [WORKER, COMMAND], ids=["worker", "command"])
def test_a_process_of_ours_does_not_import_it(code: str, tmp_path: Path) -> None:
    folder = tmp_path / "opentelemetry/sdk"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "metrics.py").write_text(INSTALLED)

    words, _ = words_of(code, PYTHONPATH=str(tmp_path), FLQ_SITE_SUPERVISOR="none")

    assert words == ["True", "False", "True"]


def test_what_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, SDK, telemetry)

    with telemetry.left_out():
        assert sys.modules[SDK] is telemetry

    assert sys.modules[SDK] is telemetry
