"""Processes that a job leaves behind end with it; a job whose process ends without an answer reports why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_queue.coordinator.operations import controls
from fl_queue.store import keyspace
from fl_queue.store.embedded.server_pair import start
from tests.conftest import chosen_server
from tests.support.checkout import ROOT
from tests.support.federation import Federation, child_of, children_of, kill, wait_for

#: A task directed by files in its folder: each name is a deed, done by the process that removes the file.
TASK = """
import multiprocessing, os, signal, subprocess, sys, time
from pathlib import Path
from fl_queue.tasks.mnist import ThreesAndSevens

FOLDER = Path(os.environ["DEEDS"])
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)", str(FOLDER)]
#: A process that ends, and one that it leaves behind, time and again.
FORKING = "import os, time\\nfor _ in range(20):\\n    time.sleep(0.005)\\n    if os.fork(): os._exit(0)\\n    os.setsid()\\ntime.sleep(600)"
DAEMON = f"import subprocess; subprocess.Popen({SLEEP!r}, start_new_session=True)"

def is_to(deed):
    try:
        (FOLDER / deed).unlink()
    except FileNotFoundError:
        return False
    return True

class Leaving(ThreesAndSevens):
    def train(self, model, data, context, on_epoch):
        if is_to("leave"):
            subprocess.Popen(SLEEP)
            subprocess.Popen(SLEEP, start_new_session=True)
            subprocess.run([sys.executable, "-c", DAEMON])
            subprocess.Popen([sys.executable, "-c", FORKING, str(FOLDER)])
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,)).start()
            (FOLDER / "left").touch()
        while (FOLDER / "wait").exists():
            time.sleep(0.05)
        if is_to("exit"):
            os._exit(0)
        if is_to("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if is_to("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().train(model, data, context, on_epoch)
"""
ONE = ("run.task=leaving:Leaving", "round.cohort=1", "run.rounds=1", "run.evaluate_every=0")
POOL = ("clients.kind=simulation", "clients.count=2", "clients.processes=1", "round.cohort=2")


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[Federation]:
    """An aggregator, a site and a pool process."""
    folder = tmp_path_factory.mktemp("horses")
    (folder / "deeds").mkdir()
    (folder / "leaving.py").write_text(TASK)
    environment = {"PYTHONPATH": str(folder), "DEEDS": str(folder / "deeds")}
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, 1, environment, "leaving:Leaving", evaluator=False)
        try:
            made.start("pool", "--processes", "1")
            wait_for("the pool", lambda: made.store.control.workers.is_role_alive("pool"), 120)
            yield made
        finally:
            made.close()


def below(pid: int) -> set[int]:
    """All processes below one, those in sessions of their own, too."""
    found: set[int] = set()
    for child in children_of(pid):
        found |= {child} | below(child)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def sleepers(federation: Federation) -> set[int]:
    """The living processes that the task has started: its folder is in their command lines."""
    mark = os.fsencode(federation.folder / "deeds")
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return {pid for pid in found if is_alive(pid)}


def leaving(federation: Federation, name: str, *overrides: str) -> tuple[str, set[int]]:
    """A run whose training has started processes and waits; they, and those above them."""
    deeds = federation.folder / "deeds"
    (deeds / "wait").touch()
    (deeds / "leave").touch()
    run = federation.begin(name, *ONE, *overrides)
    wait_for("processes", (deeds / "left").exists, 120)
    (deeds / "left").unlink()
    wait_for("all of them", lambda: len(sleepers(federation)) >= 4)
    return run, sleepers(federation)


def all_gone(federation: Federation, pids: set[int]) -> bool:
    return not sleepers(federation) and not any(map(is_alive, pids))


def healed(federation: Federation, run: str) -> str:
    """Why jobs of a run were published again, in one text."""
    events = federation.store.control.events.read({keyspace.events(run): "0-0"}, None)
    return "; ".join(event["what"] for _, _, event in events if event["event"] == "healed")


@pytest.mark.parametrize("overrides", [(), POOL], ids=["site", "pool"])
def test_nothing_is_left_of_a_job_that_ended_well(
    federation: Federation, overrides: tuple[str, ...]
) -> None:
    run, pids = leaving(federation, "well", *overrides)
    (federation.folder / "deeds/wait").unlink()
    assert federation.finish(run).state == "completed"
    wait_for("all to end", lambda: all_gone(federation, pids))
    federation.free(run)


@pytest.mark.parametrize("overrides", [(), POOL], ids=["site", "pool"])
def test_nothing_is_left_of_a_job_that_was_cancelled(
    federation: Federation, overrides: tuple[str, ...]
) -> None:
    run, pids = leaving(federation, "cancelled", *overrides)
    controls.cancel(federation.store, run)
    wait_for("all to end", lambda: all_gone(federation, pids))
    wait_for("no job", lambda: not federation.at_work())
    (federation.folder / "deeds/wait").unlink()
    federation.free(run)


def test_nothing_is_left_of_a_job_whose_worker_was_killed(federation: Federation) -> None:
    run, sleeping = leaving(federation, "killed")
    worker = federation.worker_pid("site-1")
    pids = sleeping | below(worker)
    # That of an earlier run may be kept beside it.
    at_work = [trainer for trainer in federation.trainers("site-1") if below(trainer) & sleeping]
    assert len(at_work) == 1
    kill(worker)
    wait_for("all to end", lambda: all_gone(federation, pids))
    (federation.folder / "deeds/wait").unlink()
    assert federation.finish(run).state == "completed"
    federation.free(run)


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("exit", "failed: its process ended without an answer"),
        ("kill", "failed: its process was killed from outside by signal 9"),
        ("crash", "failed: its process crashed with signal 11 (SIGSEGV)"),
    ],
)
def test_a_process_that_ends_without_an_answer_reports_why_and_another_one_answers(
    federation: Federation, deed: str, reason: str
) -> None:
    (federation.folder / "deeds" / deed).touch()
    run = federation.begin("answers", *ONE)
    assert federation.finish(run).state == "completed"
    assert reason in healed(federation, run)
    federation.free(run)


def test_other_children_of_a_worker_stay(federation: Federation, tmp_path: Path) -> None:
    """As ``rq worker --with-scheduler`` has one."""
    script = f"""
import os, subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
from fl_queue.common.offspring import Offspring
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
before = subprocess.Popen(sleep)
offspring = Offspring()
job = subprocess.Popen([sys.executable, "-c", "import subprocess, sys; subprocess.run(%r)" % sleep], start_new_session=True)
ended = offspring.end()
print(before.poll(), ended >= 1, Offspring().end())
before.kill()
"""
    made = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert made.stdout.split() == ["None", "True", "0"]


def test_ended_orphans_are_reaped_while_a_job_runs(federation: Federation) -> None:
    run, _ = leaving(federation, "reaped")
    worker = child_of(federation.processes["site-1"].pid)

    def zombies() -> list[int]:
        return [pid for pid in children_of(worker) if not is_alive(pid)]

    for pid in set(children_of(worker)) & sleepers(federation):
        kill(pid)
    wait_for("no zombie", lambda: not zombies())
    controls.cancel(federation.store, run)
    wait_for("all to end", lambda: all_gone(federation, set()))
    (federation.folder / "deeds/wait").unlink()
    federation.free(run)
