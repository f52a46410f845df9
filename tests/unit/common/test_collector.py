"""Python's garbage collector is paused while processes import, and works afterwards."""

from __future__ import annotations

import gc
import importlib

import pytest

from fl_queue.common import collector
from tests.support.python_process import words_of

#: ``python -m MODULE ARGUMENT``, and what the collector is like after its imports and when it ends.
AS_A_PROCESS = """
import atexit, gc, runpy, sys
def report():
    print(gc.isenabled(), gc.get_freeze_count() > 0)
atexit.register(report)
module, argument = sys.argv[1:]
sys.argv = ["-m"]
import workers
report()
sys.argv = [module, argument]
try:
    runpy.run_module(module, run_name="__main__")
except ValueError:
    pass
"""


def import_nothing() -> None:
    with collector.paused():
        assert not gc.isenabled()
        importlib.import_module("fl_queue.nothing")


@pytest.mark.parametrize("enabled", [True, False])
def test_imports_are_made_without_it(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ModuleNotFoundError):
            import_nothing()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize(
    ("module", "argument"), [("workers.supervisor", "--help"), ("workers.evaluator", "")]
)
def test_a_process_imports_without_it_and_works_with_it(module: str, argument: str) -> None:
    # No number: the evaluator ends right after its imports.
    words, _ = words_of(AS_A_PROCESS, module, argument, FLQ_SITE_SUPERVISOR="none")

    assert words[:2] == ["False", "False"]
    assert words[-2:] == ["True", "True"]


def test_a_program_that_imports_a_worker_keeps_its_collector() -> None:
    words, _ = words_of("import gc, workers.supervisor; print(gc.isenabled())")

    assert words == ["True"]


def test_a_command_imports_without_it_and_collects_nothing_at_its_end() -> None:
    code = """
import atexit, gc, sys
from fl_queue.cli import groups, main
importing = groups.importlib.import_module
class Loop:
    def __init__(self):
        self.itself = self
    def __del__(self, print=print):
        print("collected")
def noted(name):
    print(gc.isenabled())
    atexit.register(Loop)
    return importing(name)
groups.importlib.import_module = noted
sys.argv = ["fl-queue", "status", "--help"]
main()
"""
    words, _ = words_of(code)

    assert words[0] == "False"
    assert "collected" not in words
