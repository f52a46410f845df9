"""
Several parties that do not trust each other: whole runs with TLS, ACL, enrolment and signatures on.

Every site runs under its credentials alone; the operator's password is one that can be searched for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.config import loading
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.enrolment import RedisEndpoints
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import StoreUnavailable
from fl_queue.protocol import operator_key
from fl_queue.store import Store, credentials
from tests.support.federation import QUICK, child_of, children_of, end_processes, wait_for
from tests.support.tls_servers import Authority, Pair, TLSServer, tls_servers, url

#: Recognisable wherever it turns up.
PASSWORD = "open-sesame-4711"
SITES = ("site-1", "site-2", "evaluator")
OVERRIDES = ("security.require_enrolment=true", "round.cohort=1.0", "round.grace_s=0.2")


class Parties:
    """An operator with an aggregator, two sites and an evaluator, each with its own secrets."""

    def __init__(
        self, folder: Path, authority: Authority, control: TLSServer, data: TLSServer
    ) -> None:
        self.folder, self.control, self.data = folder, control, data
        self.operator = authority.issue("operator")
        self.url, self.blob_url = (
            url(server, PASSWORD, authority.cert, self.operator) for server in (control, data)
        )
        # The operator's machine: the commands that begin runs and the aggregator have one state folder, and its key.
        state_dir = self.folder / "state-aggregator"
        self.key = operator_key.create(state_dir / operator_key.FILE)
        self.store = Store(self.url, self.blob_url, state_dir=state_dir)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._populate(authority)
        except BaseException:
            self.close()
            raise

    def _populate(self, authority: Authority) -> None:
        self.start("aggregator", FLQ_REDIS_URL=self.url, FLQ_REDIS_BLOB_URL=self.blob_url)
        for site in SITES:
            own = authority.issue(site)
            parts = {"ca": authority.cert, "certificate": own.cert, "key": own.key}
            tls = {part: path.read_text() for part, path in parts.items()}
            place = RedisEndpoints(self.url, self.blob_url, tls)
            made = enrolment.enroll(self.store, site, place, 0, use_acl=True)
            assert made.notes == ()
            handed = replace(made.credentials, operator_key=self.key.public)
            credentials.write(self.file(site), handed)
            self.start(site, "--credentials", str(self.file(site)))
        wait_for("workers", lambda: len(self.store.control.workers.living()) == 4, 120)

    def file(self, site: str) -> Path:
        return self.folder / f"{site}.toml"

    def start(self, name: str, *options: str, **environment: str) -> None:
        role = name if name in ("aggregator", "evaluator") else "client"
        line = [sys.executable, "-m", "fl_queue", "worker", role, *options]
        line += ["--state-dir", str(self.folder / f"state-{name}")]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                line, stdout=log, stderr=log, env={**os.environ, **environment}
            )

    def begin(self, name: str, *overrides: str) -> str:
        loaded = loading.load("mnist-3v7", (*QUICK, *OVERRIDES, *overrides))
        run = runs.start_run(self.store, name, loaded, loaded.run.rounds).run_id
        lifecycle.advance(self.store, run)
        return run

    def finish(self, run: str) -> str:
        def ended() -> bool:
            state = self.store.control.runs.get(run)
            return state is not None and not state.active

        wait_for("the run to end", ended, 90)
        return runs.find_run(self.store, run).state

    def reach(self, run: str, number: int) -> None:
        wait_for(
            f"round {number}", lambda: runs.find_run(self.store, run).round >= number, timeout_s=60
        )

    def accepted(self, run: str) -> list[set[str]]:
        history = self.store.control.history.records(run)
        return [set(record.accepted) for record in history if record.outcome == "committed"]

    def command(self, *arguments: str) -> str:
        environment = {"FLQ_REDIS_URL": self.url, "FLQ_REDIS_BLOB_URL": self.blob_url}
        environment["FLQ_STATE_DIR"] = str(self.store.state_dir)
        done = CliRunner().invoke(cli, list(arguments), env=environment)
        assert done.exception is None, done.output
        return done.output

    def secrets_in(self, texts: Mapping[str, bytes]) -> list[tuple[str, str]]:
        """Where which secret turns up."""
        secrets = {PASSWORD, self.key.secret}
        for site in SITES:
            read = credentials.read(self.file(site))
            secrets |= {read.signing_key, read.tls["key"].splitlines()[1]}
            secrets |= {login.password for login in read.users.values()}
        return [
            (name, secret)
            for name, text in texts.items()
            for secret in secrets
            if secret.encode() in text
        ]

    def environments_of_trainers(self) -> dict[str, bytes]:
        """What own code of a task can read: the environments of the processes below the sites' workers."""
        found = {}
        for site in SITES:
            fork_server = child_of(child_of(self.processes[site].pid))
            for pid in (fork_server, *children_of(fork_server)):
                found[f"{pid}/environ"] = _read(Path(f"/proc/{pid}/environ"))
            assert b"FLQ_SITE_CLIENT=" in found[f"{fork_server}/environ"]
            assert bytes(self.file(site)) not in found[f"{fork_server}/environ"]
        return found

    def traces(self, run: str) -> dict[str, bytes]:
        """All that the run and its processes have left, and the output of the commands about it."""
        found = {
            str(path): _read(path)
            for path in self.folder.rglob("*")
            if path.is_file() and path.suffix not in (".toml", ".key") and path.name != "users.acl"
        }
        assert len([name for name in found if name.endswith(".log")]) >= 4
        for client in (self.store.servers.control, self.store.servers.data):
            found |= {f"{key!r}": client.dump(key) or b"" for key in client.scan_iter()}
        for words in (
            ["status", run],
            ["events", run],
            ["doctor"],
            ["clients"],
            ["config", "show"],
        ):
            found[" ".join(words)] = self.command(*words).encode()
        return found

    def close(self) -> None:
        end_processes(self.processes.values())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def parties(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, no_process_left: None
) -> Iterator[Parties]:
    folder = tmp_path_factory.mktemp("parties")
    with tls_servers(folder, authority, PASSWORD) as (control, data):
        made = Parties(folder, authority, control, data)
        try:
            yield made
        finally:
            made.close()


def test_a_run_with_everything_on(parties: Parties) -> None:
    """Through a crash of the control server and forgeries; no secret is anywhere but where it belongs."""
    # Chunked updates: more keys of a site's own.
    run = parties.begin("secured", "redis.inline_bytes=0", "redis.chunk_bytes=65536")
    parties.reach(run, 1)
    for _ in range(20):
        parties.store.data.results.push(run, b"FLQS\x06site-1" + bytes(64) + b"FLQ1" + bytes(8))
    processes = [Path(f"/proc/{name}") for name in os.listdir("/proc") if name.isdigit()]
    seen = {f"{path}/cmdline": _read(path / "cmdline") for path in processes}
    seen |= parties.environments_of_trainers()
    parties.reach(run, 2)
    parties.control.kill()
    parties.control.start()

    assert parties.finish(run) == "completed"
    assert parties.accepted(run) == [{"site-1", "site-2"}] * 3
    assert wait_for("scores", lambda: parties.store.control.evaluations.all(run).get(3))
    assert "not signed with the key of site-1" in parties.command("events", run)
    assert parties.secrets_in({**seen, **parties.traces(run)}) == []
    for site in SITES:
        assert parties.file(site).stat().st_mode & 0o777 == 0o600
        pid = parties.processes[site].pid
        assert parties.secrets_in({"environ": _read(Path(f"/proc/{pid}/environ"))}) == []
    # Nothing that any process wrote on its machine can be read by other accounts of it.
    states = list(parties.folder.glob("state-*"))
    below = [path for state in states for path in (state, *state.rglob("*"))]
    assert len(states) == 4
    assert len(below) > 20
    assert [path for path in below if path.stat().st_mode & 0o077 and not path.is_symlink()] == []


def test_who_is_revoked_in_the_middle_of_a_run_is_out_and_the_run_goes_on(parties: Parties) -> None:
    run = parties.begin("revoked", "round.quorum=1", "run.rounds=4")
    parties.reach(run, 2)

    parties.command("revoke", "site-2")

    assert parties.finish(run) == "completed"
    accepted = parties.accepted(run)
    assert accepted[0] == {"site-1", "site-2"}
    assert accepted[-1] == {"site-1"}
    assert "client_revoked" in parties.command("events", run, "--json")
    with (
        pytest.raises(redis.AuthenticationError),
        redis.Redis.from_url(credentials.read(parties.file("site-2")).urls()[0]) as site,
    ):
        site.ping()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # A process that has ended, or a socket.


# What TLS refuses


def reason_of(text: str) -> str:
    with pytest.raises(StoreUnavailable) as caught, Store(text, text) as store:
        store.check()
    assert PASSWORD not in str(caught.value)
    assert caught.value.exit_code == 5
    return str(caught.value)


def test_a_tls_error_names_its_cause(
    parties: Parties, authority: Authority, tmp_path: Path
) -> None:
    server, own, ca = parties.control, parties.operator, authority.cert
    stranger = Authority(tmp_path / "stranger")
    foreign = stranger.issue("operator")
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")

    assert "not signed by the CA that is trusted here" in reason_of(
        url(server, PASSWORD, stranger.cert, own)
    )
    assert "its certificate is for another address" in reason_of(
        url(server, PASSWORD, ca, own, host="127.0.0.1")
    )
    # Which of the two, a server of TLS 1.3 need not report.
    for pair in (None, foreign):
        assert "certificate of ours" in reason_of(url(server, PASSWORD, ca, pair))
    assert "a certificate file of the URL is not there" in reason_of(
        url(server, PASSWORD, tmp_path / "no.crt", own)
    )
    assert "is not PEM text" in reason_of(url(server, PASSWORD, rubbish, own))
    assert "do not belong together" in reason_of(
        url(server, PASSWORD, ca, Pair(own.cert, foreign.key))
    )
    plain = f"redis://:{PASSWORD}@localhost:{server.port}/0"
    assert "does it want TLS (rediss://)?" in reason_of(plain)
