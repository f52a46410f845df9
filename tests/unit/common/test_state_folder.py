"""A state folder that others can write to, or that is another account's, is refused; others see nothing of ours."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.client import pausing
from fl_queue.client.site import WorkerSettings
from fl_queue.common import state_folder
from fl_queue.errors import ConfigError

UNPRIVILEGED = 65534
#: Name of that account, as messages show it.
ACCOUNT = pwd.getpwuid(UNPRIVILEGED).pw_name
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give a folder to another account"
)


def folder_of(path: Path, mode: int, uid: int = -1, gid: int = -1) -> Path:
    path.mkdir()
    path.chmod(mode)
    os.chown(path, uid, gid)
    return path


def test_a_folder_others_can_look_into_is_narrowed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = folder_of(tmp_path / "state", 0o755)

    with caplog.at_level(logging.WARNING):
        state_folder.check(state)
        state_folder.check(state)

    assert state.stat().st_mode & 0o777 == 0o700
    assert [record.getMessage() for record in caplog.records] == [
        f"{state}: others of this machine could look into it; from now on its owner alone can"
    ]


def test_a_folder_that_is_not_there_is_no_error_and_is_not_made(tmp_path: Path) -> None:
    state_folder.check(tmp_path / "not" / "there")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o1777])
def test_a_world_writable_folder_is_refused(tmp_path: Path, mode: int) -> None:
    state = folder_of(tmp_path / "state", mode)

    with pytest.raises(
        ConfigError, match=f"--state-dir: {state} can be written to by others.*chmod"
    ):
        state_folder.check(state)
    assert state.stat().st_mode & 0o7777 == mode


@as_root
def test_a_folder_that_another_group_can_write_to_is_refused(tmp_path: Path) -> None:
    state = folder_of(tmp_path / "state", 0o770, gid=UNPRIVILEGED)

    with pytest.raises(ConfigError, match="can be written to by others"):
        state_folder.check(state)


def test_the_group_of_the_account_itself_is_no_other(tmp_path: Path) -> None:
    """A umask of 002 made such folders."""
    state = folder_of(tmp_path / "state", 0o775, gid=os.getegid())

    state_folder.check(state)

    assert state.stat().st_mode & 0o777 == 0o700


@as_root
def test_the_folder_of_another_account_is_refused_and_its_owner_named(tmp_path: Path) -> None:
    state = folder_of(tmp_path / "state", 0o700, uid=UNPRIVILEGED)

    with pytest.raises(ConfigError, match=rf"belongs to {ACCOUNT}.*sudo -u"):
        state_folder.check(state)


@as_root
def test_a_link_that_another_account_has_planted_is_refused(tmp_path: Path) -> None:
    """It leads to a folder of ours, where its maker wants something written."""
    folder_of(tmp_path / "ours", 0o700)
    link = tmp_path / "state"
    link.symlink_to(tmp_path / "ours")
    state_folder.check(link)  # Our own is none of that.
    os.lchown(link, UNPRIVILEGED, UNPRIVILEGED)

    with pytest.raises(ConfigError, match=f"belongs to {ACCOUNT}"):
        state_folder.check(link)


def test_a_folder_in_one_where_others_could_exchange_it_is_refused(tmp_path: Path) -> None:
    above = folder_of(tmp_path / "above", 0o777)
    state = folder_of(above / "state", 0o700)

    with pytest.raises(ConfigError, match=f"lies in {above}.*chmod go-w {above}"):
        state_folder.check(state)
    above.chmod(0o1777)  # As /tmp: only the owner may exchange it there.
    state_folder.check(state)


@pytest.fixture
def visited(tmp_path: Path) -> Iterator[Path]:
    """The state folder of another account, in a place that it reaches: what pytest gives is root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        state = Path(folder) / "state"
        pausing.register_client(WorkerSettings(state_dir=state, client="hospital-a"))
        for path in (state, *state.rglob("*")):
            os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
        yield state


@as_root
@pytest.mark.parametrize("planted", ["sites", "sites/hospital-a"])
def test_root_at_a_site_is_led_nowhere_by_what_the_site_has_planted(
    visited: Path, tmp_path: Path, planted: str
) -> None:
    """Root would else write and remove files in root's folders, at paths that the site's account chooses."""
    secret = tmp_path / "of-root"
    for name in ("hospital-a", "."):
        (secret / name).mkdir(parents=True, exist_ok=True)
        (secret / name / "paused").write_text("{}")
    link = visited / planted
    shutil.rmtree(link)
    link.symlink_to(secret)
    before = sorted((path, path.stat().st_mtime_ns) for path in secret.rglob("*"))

    for command in ("pause", "unpause", "approve"):
        CliRunner().invoke(cli, [command, "--state-dir", str(visited)])

    assert sorted((path, path.stat().st_mtime_ns) for path in secret.rglob("*")) == before
    assert (os.geteuid(), os.getegid()) == (0, 0)


@as_root
def test_root_may_visit_a_site_and_leaves_files_its_worker_can_read(visited: Path) -> None:
    state = visited

    done = CliRunner().invoke(cli, ["pause", "--state-dir", str(state)])

    assert done.output == "hospital-a is paused\n"
    file = state / "sites" / "hospital-a" / "paused"
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (UNPRIVILEGED, 0o600)
    refused = CliRunner().invoke(cli, ["status", "--state-dir", str(state)])
    assert isinstance(refused.exception, ConfigError)


@pytest.mark.parametrize(
    "command",
    [
        ["worker", "aggregator"],
        ["worker", "client", "--client", "a"],
        ["status"],
        ["redis"],
        ["pause"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_every_command_refuses_a_state_folder_of_others(tmp_path: Path, command: list[str]) -> None:
    state = folder_of(tmp_path / "state", 0o777)
    # redis.json there could name the server of another account.
    (state / "redis.json").write_text(
        '{"url": "redis://203.0.113.1", "blob_url": "redis://203.0.113.1"}'
    )

    done = CliRunner().invoke(cli, [*command, "--state-dir", str(state)])

    assert isinstance(done.exception, ConfigError)
    assert done.exception.exit_code == 2


def test_a_supervisor_refuses_it_too(tmp_path: Path) -> None:
    state = folder_of(tmp_path / "state", 0o777)

    done = subprocess.run(
        [sys.executable, "-P", "-m", "workers.supervisor", "aggregator"],
        env={**os.environ, "FLQ_SITE_STATE_DIR": str(state)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip

    assert done.returncode == 2
    assert "can be written to by others" in done.stderr


def test_a_process_of_its_own_has_a_umask_for_what_libraries_write(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        state_folder.enter(tmp_path)
        (tmp_path / "theirs").write_text("")
    finally:
        os.umask(before)

    assert (tmp_path / "theirs").stat().st_mode & 0o777 == 0o600
