"""`fl-queue reload`: each wish is another one, of the clients that are named or of all of a state folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.client import pausing, reload
from fl_queue.client.site import WorkerSettings
from fl_queue.errors import ConfigError


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    for client in ("a", "b"):
        pausing.register_client(WorkerSettings(state_dir=tmp_path, client=client))
    return tmp_path


def test_each_wish_is_new_and_private(state_dir: Path) -> None:
    reload.wish(state_dir, "a")
    first = reload.path(state_dir, "a").read_bytes()
    reload.wish(state_dir, "a")

    assert reload.path(state_dir, "a").read_bytes() != first
    assert reload.path(state_dir, "a").stat().st_mode & 0o777 == 0o600
    assert not reload.path(state_dir, "b").exists()


@pytest.mark.parametrize(("named", "wished"), [((), ["a", "b"]), (("b",), ["b"])])
def test_the_command_is_about_the_named_clients_or_all(
    state_dir: Path, named: tuple[str, ...], wished: list[str]
) -> None:
    done = CliRunner().invoke(cli, ["reload", *named, "--state-dir", str(state_dir), "--json"])

    assert json.loads(done.stdout) == [{"client": client, "reload": True} for client in wished]
    assert [client for client in "ab" if reload.path(state_dir, client).exists()] == wished


def test_an_unknown_client_is_refused(state_dir: Path) -> None:
    done = CliRunner().invoke(cli, ["reload", "c", "--state-dir", str(state_dir)])

    assert isinstance(done.exception, ConfigError)
    assert "no worker of c has used" in str(done.exception)
