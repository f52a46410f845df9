"""A worker is ready soon: what is not imported on the way, and what waits for what."""

from __future__ import annotations

import os
import pkgutil
from pathlib import Path

import pytest

from fl_queue import store
from fl_queue.client.site import WorkerSettings
from fl_queue.errors import StoreUnavailable
from tests.support.python_process import words_of
from workers import HELD, rq_worker
from workers.supervisor import Supervisor

IMPORTED = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("fl_queue.cli.worker", ["redis", "numpy", "fl_queue.config", "fl_queue.protocol.events"]),
        ("workers.supervisor", ["redis", "click", "numpy", "fl_queue.protocol.events"]),
        ("workers.client", ["click", "numpy", "fl_queue.config", "fl_queue.protocol.events"]),
    ],
)
def test_a_process_on_the_way_imports_what_it_uses(module: str, without: list[str]) -> None:
    words, _ = words_of(IMPORTED, module, *without)

    assert words == []


def test_a_store_is_made_of_names_that_are_imported_when_they_are_used() -> None:
    words, _ = words_of(
        IMPORTED + "from fl_queue.store import Store, keyspace\nprint(Store.__name__)",
        "fl_queue.store",
        "redis",
    )

    assert words == ["Store"]


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    return Supervisor("client", WorkerSettings(state_dir=tmp_path, client="a"), count=2)


def test_workers_that_were_started_early_end_when_the_servers_are_not_fit(
    supervisor: Supervisor,
) -> None:
    started: list[int] = []

    def check() -> None:
        started.extend(slot.child.process.pid for slot in supervisor._slots if slot.child)
        raise StoreUnavailable("redis://nowhere", "not reachable")

    with pytest.raises(StoreUnavailable):
        supervisor.begin(check)

    assert len(started) == 2
    assert [Path(f"/proc/{pid}").exists() for pid in started] == [False, False]
    assert not any(slot.child for slot in supervisor._slots)


def test_a_worker_waits_until_its_supervisor_has_seen_the_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs, mine = os.pipe()
    monkeypatch.setenv(HELD, str(theirs))
    os.write(mine, b"\0\0")
    rq_worker._wait_for_supervisor()
    assert HELD not in os.environ
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(theirs)


def test_a_worker_whose_supervisor_ended_meanwhile_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, mine = os.pipe()
    monkeypatch.setenv(HELD, str(theirs))
    os.close(mine)
    with pytest.raises(SystemExit):
        rq_worker._wait_for_supervisor()


def test_no_public_name_of_the_store_is_hidden_by_a_module_of_that_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(store.__path__)}

    assert modules & set(store.__all__) == set()
