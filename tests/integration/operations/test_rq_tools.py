"""RQ's own tools as docs/reference/rq.md describes: a plain `rq worker` serves a client, rq-dashboard unpickles nothing."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.store import Store, acl, keyspace
from tests.support.checkout import ROOT
from tests.support.federation import end_processes, wait_for

BIN = Path(sys.executable).parent
PASSWORD = "only-to-read"


def documented(program: str) -> str:
    """The command of docs/reference/rq.md that begins so."""
    found = re.search(rf"^{program}.*$", (ROOT / "docs/reference/rq.md").read_text(), re.MULTILINE)
    assert found is not None
    return found[0]


@contextmanager
def running(line: str, **environment: str) -> Iterator[None]:
    """A command of the document while it runs; its output is printed, and shown where a test fails."""
    program, *words = shlex.split(line)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, BIN / program, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=output,
            stderr=output,
        )
        try:
            yield
        finally:
            end_processes([process])
            output.seek(0)
            print(output.read().decode(errors="replace"))


def test_a_plain_rq_worker_serves_a_client(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    options = documented("OURS=").partition('"')[2].rstrip('"')
    line = documented("rq worker").replace("hospital-a", "a").replace("$OURS", options)
    assert documented("export RQ_REDIS_URL").startswith("export RQ_REDIS_URL=$FLQ_REDIS_URL ")
    site = {"FLQ_SITE_CLIENT": "a", "FLQ_SITE_STATE_DIR": str(tmp_path / "state")}
    urls = {"FLQ_REDIS_URL": redis_urls[0], "FLQ_REDIS_BLOB_URL": redis_urls[1]}
    urls["RQ_REDIS_URL"] = redis_urls[0]
    with running(line, **site, **urls):
        wait_for("its lease", lambda: store.control.leases.get(keyspace.client_holder("a")), 120)
        loaded = loading.load("mnist-3v7", ("round.cohort=1", "run.preflight=off"), {})
        run = runs.start_run(store, "plainly", loaded, 1).run_id
        lifecycle.advance(store, run)
        # Version 0, made by the client, as there is no evaluator.
        wait_for("version 0 to be pushed", lambda: store.data.results.count(run), 120)


class Dashboard:
    """A real rq-dashboard on a free port, started with the document's command."""

    def __init__(self, port: int) -> None:
        self.port = port

    def data(self, path: str) -> Any:
        return json.loads(self.ask(f"0/data/{path}.json"))

    def answers(self) -> bool:
        try:
            return bool(self.data("queues"))
        except OSError:
            return False

    def ask(self, path: str, **options: Any) -> str:
        """What it answers, errors included."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", **options)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as exc:
            return str(exc)


@contextmanager
def dashboard(line: str, url: str) -> Iterator[Dashboard]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        found = Dashboard(free.getsockname()[1])
    with running(f"{line} -p {found.port}", RQ_DASHBOARD_REDIS_URL=url):
        wait_for("rq-dashboard", found.answers, 120)
        yield found


class _Touch:
    """What a hostile client might leave in its job's hash."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_rq_dashboard_shows_queues_and_runs_nothing(
    run: str, store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    version = store.control.redis.info("server")["redis_version"].split(".")
    rules = acl.users("reader", "", (int(version[0]), int(version[1])), "both")[0].rules
    store.control.redis.execute_command(
        "ACL", "SETUSER", "flq-reader", "reset", "on", f">{PASSWORD}", *rules
    )
    separator = "&" if "?" in redis_urls[0] else "?"
    url = f"{redis_urls[0]}{separator}username=flq-reader&password={PASSWORD}"
    line = documented("rq-dashboard ")
    (job,) = store.control.redis.lrange("rq:queue:flq-client-a", 0, -1)
    hostile = pickle.dumps(_Touch(tmp_path / "ran"))
    name = job.decode()

    with dashboard(line, url) as shown:
        queues = {queue["name"]: queue["count"] for queue in shown.data("queues")["queues"]}
        (shown_job,) = shown.data("jobs/flq-client-a/queued/8/asc/1")["jobs"]
        store.control.redis.hset(f"rq:job:{name}", "meta", hostile)
        asked = (f"0/view/job/{name}", f"0/data/job/{name}.json")
        for path in asked:
            shown.ask(path)
        emptied = shown.ask("queue/flq-client-a/queued/empty", method="POST")

    assert queues["flq-client-a"] == 1
    assert shown_job["id"] == name
    assert not (tmp_path / "ran").exists()
    assert "DISABLED" in emptied
    assert store.control.redis.llen("rq:queue:flq-client-a") == 1

    with dashboard(line.replace("-c workers.dashboard", "--json"), url) as careless:
        careless.ask(asked[0])
    assert (tmp_path / "ran").exists()  # The trap: the same without it.
