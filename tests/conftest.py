"""
The suite's real redis-servers, and the check that it leaves no process behind.

Redis is never faked. Which binary serves: see ``tests.support.server_binaries``.
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings

from fl_queue.common import collector
from fl_queue.store import Store
from fl_queue.store.embedded.server_pair import EmbeddedRedis, start
from tests.support import order, prestarted, skips
from tests.support.federation import Federation
from tests.support.server_binaries import chosen_server, put_chosen_on_path

# Hooks; pytest finds them by their names here.
pytest_sessionfinish = skips.pytest_sessionfinish
pytest_terminal_summary = skips.pytest_terminal_summary
pytest_collection_modifyitems = order.pytest_collection_modifyitems

# How long an example takes is the machine's business: others run tests beside it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

#: Inherited by every process the suite starts, so that orphans are recognised, too.
_MARK = f"FLQ_TEST_SESSION={secrets.token_hex(8)}"
_END_S = 5.0
#: Python's thresholds of the garbage collector times some; the tests' own garbage is small.
_COLLECT_AFTER = (20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def no_process_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the session when a process it started outlives it, and ends that process."""
    name, value = _MARK.split("=")
    os.environ[name] = value

    yield

    prestarted.SESSION.close()
    del os.environ[name]
    folder = tmp_path_factory.getbasetemp()
    deadline = time.monotonic() + _END_S
    while (left := leftovers(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if left:
        pytest.fail("processes left behind: " + "; ".join(left.values()), pytrace=False)


def leftovers(folder: Path) -> dict[int, str]:
    """
    Living processes that this one started: pid -> ``pid command line``.

    Descendants, those with the suite's mark in their environment (orphans), and those that work
    inside ``folder`` (an orphaned redis-server, which overwrites its environment).
    """
    seen = {pid: stat for pid in _pids() if (stat := _stat(pid)) and stat[0] != "Z"}
    ours = {os.getpid()}
    while more := {pid for pid, (_, parent) in seen.items() if parent in ours} - ours:
        ours |= more
    ours |= {pid for pid in seen if _is_marked(pid, folder)}
    found = {pid: f"{pid} {_command(pid)}" for pid in ours - {os.getpid()}}
    # Python's own helper of shared memory; it ends with the interpreter.
    return {
        pid: text for pid, text in found.items() if "multiprocessing.resource_tracker" not in text
    }


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> tuple[str, int] | None:
    """(state, parent); None when it has just ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return state, int(parent)


def _is_marked(pid: int, folder: Path) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        works_in = Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return False
    return pid != os.getpid() and (_MARK.encode() in environment or folder in works_in.parents)


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return "(ended)"


def pytest_configure(config: pytest.Config) -> None:
    """Once a process: pytest-xdist's own processes have a PATH of their own."""
    collector.start_process()
    order.keep_order(config)
    folder = Path(tempfile.mkdtemp(prefix="flq-test-path-"))
    folder.chmod(0o755)  # Also for servers that a test starts as another user.
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    put_chosen_on_path(folder)
    _keep_compiled_code()
    # Read when torch is imported. Two threads of each process wait for each other by spinning, and files run
    # beside each other: a test of half a second took fifteen.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """
    Leave everything that is imported by now to itself when garbage is collected.

    That is a million objects, with torch: to look at all of them again and again was a fifth of the time of unit tests.
    """
    gc.collect()
    collector.started()
    gc.set_threshold(*_COLLECT_AFTER)


def _keep_compiled_code() -> None:
    """
    Let Python keep what it compiles (``__pycache__``), whatever PYTHONDONTWRITEBYTECODE is.

    The suite starts hundreds of processes: each would compile a hundred and more of our modules again, which
    is a quarter of the time a worker takes to start.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


@pytest.fixture(scope="session", name="embedded")
def embedded_redis(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[EmbeddedRedis]:
    """Both redis-servers, shared by the session; use ``redis_urls``."""
    with start(tmp_path_factory.mktemp("redis"), server=chosen_server()) as servers:
        yield servers


@pytest.fixture
def redis_urls(embedded: EmbeddedRedis) -> tuple[str, str]:
    """(url, blob_url) of servers that are empty."""
    urls = embedded.url, embedded.blob_url
    for url in urls:
        with redis.Redis.from_url(url) as client:
            client.flushall()
    return urls


@pytest.fixture
def store(redis_urls: tuple[str, str], tmp_path: Path) -> Iterator[Store]:
    """Both servers, empty, without any worker."""
    made = Store.open(*redis_urls, tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def federation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[Federation]:
    """
    An aggregator, an evaluator and clients on servers of their own, for all tests of a module.

    The module may set ``CLIENTS`` (2), ``environment(folder)`` for the workers, ``ALLOW``, the own tasks
    that they let in, ``EVALUATOR = False`` where no run has versions scored (each worker that imports torch
    costs seconds of processor time), and ``FORKED = True``, which saves the imports.
    """
    folder = tmp_path_factory.mktemp("federation")
    module = request.module
    environment = getattr(module, "environment", lambda folder: {})
    clients, allow = getattr(module, "CLIENTS", 2), getattr(module, "ALLOW", "")
    evaluator, forked = getattr(module, "EVALUATOR", True), getattr(module, "FORKED", False)
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(
            redis, folder, clients, environment(folder), allow, evaluator=evaluator, forked=forked
        )
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """Own servers, for a test that kills them."""
    with start(tmp_path / "state", server=chosen_server()) as servers:
        yield servers
