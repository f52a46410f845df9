"""A site that is revoked while it trains: it ends the training, and reports why, then and at the next start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.store.embedded import server_pair
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.fault.outages import ONE_EACH, TASK
from tests.support.checkout import ROOT
from tests.support.federation import Federation, children_of, wait_for
from tests.support.server_binaries import chosen_server

SENTENCE = "hospital-a was revoked, or its password was changed: ask the operator"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with server_pair.start(tmp_path / "state", tcp=True, server=chosen_server()) as redis:
        yield redis


def operator(servers: EmbeddedRedis, *arguments: str) -> None:
    environment = {"FLQ_REDIS_URL": servers.url, "FLQ_REDIS_BLOB_URL": servers.blob_url}
    environment["FLQ_STATE_DIR"] = str(servers.state_dir)
    done = CliRunner().invoke(cli, list(arguments), env=environment)
    assert done.exception is None, done.output


# It lasts until a login that is refused is final, more than half a minute.
@pytest.mark.slow
def test_a_revoked_site_ends_its_training_and_reports_why(
    servers: EmbeddedRedis, tmp_path: Path, no_process_left: None
) -> None:
    (tmp_path / "gated.py").write_text(TASK)
    file = tmp_path / "hospital-a.toml"
    operator(servers, "enroll", "hospital-a", "-o", str(file))
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "GATES": str(tmp_path)}
    federation = Federation(servers, tmp_path, 0, environment, "gated:Gated")
    try:
        federation.start("hospital-a", "--credentials", str(file))
        wait_for("it", lambda: len(federation.store.control.workers.living()) == 3, 120)
        federation.begin("revoked", *ONE_EACH, "run.rounds=1")
        wait_for("its training", (tmp_path / "trainings").exists, 120)
        worker = federation.worker_pid("hospital-a")
        horse = wait_for("its process", lambda: next(iter(children_of(worker)), 0))

        operator(servers, "revoke", "hospital-a")

        log = tmp_path / "hospital-a.log"
        wait_for("the reason", lambda: SENTENCE in log.read_text(), 180)
        wait_for("the training to end", lambda: not Path(f"/proc/{horse}").exists(), 60)
        wait_for("the worker to end", lambda: "trying again in 60 s" in log.read_text(), 60)
        assert "Traceback" not in log.read_text()
        # Its supervisor stays, with nothing that trains or starts again and again.
        assert federation.processes["hospital-a"].poll() is None
        assert log.read_text().count(SENTENCE) == 1

        line = [sys.executable, "-m", "fl_queue", "worker", "client", "--credentials", str(file)]
        line += ["--state-dir", str(tmp_path / "other")]
        again = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert again.returncode == 5
        assert SENTENCE in again.stderr
        assert "Traceback" not in again.stderr
    finally:
        federation.close()
