"""The commands of docs/getting-started/two-hospitals.md make a federation: certificates, servers with TLS and users, enrolment."""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_queue.client.site import WorkerSettings
from fl_queue.store import credentials, keyspace
from tests.support.checkout import ROOT
from tests.support.federation import end_processes, wait_for
from tests.support.redis_cluster import free_port
from tests.support.server_binaries import with_tls

TEXT = (ROOT / "docs/getting-started/two-hospitals.md").read_text()
STEPS = re.findall(r"<!-- step -->\n```\n(.*?)```", TEXT, re.DOTALL)


class Operator:
    """A shell on the operator's machine. Args: ``folder``: what it works in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"6379": str(free_port()), "6380": str(free_port())}
        programs = folder / "bin"
        programs.mkdir()
        (programs / "redis-server").symlink_to(with_tls())
        (programs / "fl-queue").symlink_to(Path(sys.executable).parent / "fl-queue")
        self.environ = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FLQ_STATE_DIR": str(folder / "state"),
        }

    def here(self, text: str) -> str:
        """The same commands, for a server on free ports of this machine."""
        for port, free in self.ports.items():
            text = text.replace(port, free)
        return text.replace("HOST=redis.example.org", "HOST=localhost")

    def run(self, steps: list[str]) -> subprocess.CompletedProcess[str]:
        # One shell, as for a reader of the page; a step that fails ends it.
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", self.here("\n".join(steps))],
            cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    made = Operator(tmp_path_factory.mktemp("operator"))
    try:
        yield made
    finally:
        for role in ("control", "data"):
            file = made.folder / f"{role}.pid"
            if file.exists():
                os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def done(operator: Operator) -> subprocess.CompletedProcess[str]:
    return operator.run(STEPS)


def test_the_commands_of_the_page_run(done: subprocess.CompletedProcess[str]) -> None:
    assert len(STEPS) == 5
    assert done.returncode == 0, done.stderr
    # Nothing of the servers is to be mended; a distribution's Redis may have an old number.
    bad = [line for line in done.stdout.splitlines() if re.match(r"(WARN|FAIL)", line.strip())]
    odd = [line for line in bad if "server" in line and "known vulnerabilities" not in line]
    assert odd == []


def test_everything_it_makes_is_its_owners_alone(
    operator: Operator, done: subprocess.CompletedProcess[str]
) -> None:
    open_to_others = [
        path.name
        for path in operator.folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    assert open_to_others == []
    assert list(operator.folder.glob("*.password")) == []


def test_a_server_takes_no_client_without_a_certificate_or_a_password(
    operator: Operator, done: subprocess.CompletedProcess[str]
) -> None:
    ask = f"redis-cli -h localhost -p 6379 --tls --cacert {operator.folder}/ca.crt "
    pair = f"--cert {operator.folder}/tls-operator.crt --key {operator.folder}/tls-operator.key "

    assert "NOAUTH" in operator.run([ask + pair + "get x"]).stdout
    without = operator.run([ask + "get x || true"])
    assert "NOAUTH" not in without.stdout
    assert "rror" in without.stderr + without.stdout


def test_a_hospital_comes_alive_with_its_file_alone(
    operator: Operator, done: subprocess.CompletedProcess[str]
) -> None:
    (command,) = re.findall(r"<!-- step: stays -->\n```\n(.*?)\n```", TEXT, re.DOTALL)
    (operator.folder / "data").mkdir()
    site = WorkerSettings(credentials=str(operator.folder / "hospital-a.toml"))
    assert credentials.read(operator.folder / "hospital-a.toml").client == "hospital-a"
    alone = {name: value for name, value in operator.environ.items() if "REDIS" not in name}
    program = [sys.executable, "-P", "-m", "fl_queue", *shlex.split(command)[1:]]

    with (operator.folder / "hospital-a.log").open("wb") as log:
        worker = subprocess.Popen(
            program,
            cwd=operator.folder,
            env={**alone, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        store = site.store()
        wait_for(
            "its lease", lambda: store.control.leases.get(keyspace.client_holder("hospital-a")), 120
        )
    finally:
        end_processes([worker])
