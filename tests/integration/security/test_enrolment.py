"""Enrolling and revoking: one file for a site, users that outlive a crash, and whole runs under them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result

from fl_queue.cli import cli
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.errors import ConfigError, FLQueueError
from fl_queue.protocol import operator_key, signing
from fl_queue.store import Store, credentials, keyspace
from fl_queue.store.acl_users import Users
from fl_queue.store.credentials import Credentials, Login
from fl_queue.store.embedded import server_pair
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.server_binaries import before_7, chosen_server

FILE = "hospital-a.toml"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with server_pair.start(tmp_path / "state", tcp=True, server=chosen_server()) as redis:
        yield redis


def command(servers: EmbeddedRedis, *arguments: str) -> Result:
    """Run a command as the operator, whose secrets are in the environment."""
    environment = {"FLQ_REDIS_URL": servers.url, "FLQ_REDIS_BLOB_URL": servers.blob_url}
    environment["FLQ_STATE_DIR"] = str(servers.state_dir)
    return CliRunner().invoke(cli, list(arguments), env=environment)


def handed(servers: EmbeddedRedis, client: str, folder: Path, *options: str) -> Path:
    """Credentials of a client, made by the command."""
    path = folder / f"{client}.toml"
    done = command(servers, "enroll", client, "-o", str(path), *options)
    assert done.exception is None, done.output
    return path


def is_let_in(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.AuthenticationError:
        return False


def test_the_file_has_all_a_site_needs_and_no_other_user_reads_it(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    path = handed(servers, "hospital-a", tmp_path, "--max-examples", "600")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = credentials.read(path)
    known = Store(servers.url, servers.blob_url).control.enrolments.get("hospital-a")
    assert known is not None
    assert known.max_examples == 600
    sealed = signing.opened(signing.seal(b"FLQ1" + bytes(8), "hospital-a", read.signing_key))
    assert sealed is not None
    assert signing.is_signed_by(sealed, known.key)
    assert all(map(is_let_in, read.urls()))
    # The operator's own password is not in it, nor is the site's on the server.
    assert servers.url.split("@")[0].removeprefix("redis://:") not in path.read_text()
    for login in read.users.values():
        assert login.password not in known.to_json()
        assert login.password not in repr(read)


def test_the_operators_key_is_made_once_and_its_public_half_is_handed_over(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    first, second = (handed(servers, name, tmp_path) for name in ("hospital-a", "hospital-b"))

    key = operator_key.find(servers.state_dir)
    assert key is not None
    for path in (first, second):
        assert credentials.read(path).operator_key == key.public
        assert key.secret not in path.read_text()

    elsewhere = tmp_path / "vault" / "key"
    third = handed(servers, "hospital-c", tmp_path, "--operator-key", str(elsewhere))
    assert credentials.read(third).operator_key == operator_key.load(elsewhere).public != key.public


def test_a_file_of_before_there_was_an_operators_key_can_be_read(tmp_path: Path) -> None:
    credentials.write(tmp_path / FILE, replace(GOOD, operator_key=""))

    assert "operator_key" not in (tmp_path / FILE).read_text()
    assert credentials.read(tmp_path / FILE).operator_key == ""


def test_an_enrolled_site_may_not_do_what_others_do(servers: EmbeddedRedis, tmp_path: Path) -> None:
    url, blob_url = credentials.read(handed(servers, "hospital-a", tmp_path)).urls()
    for refused in ("KEYS *", "FLUSHALL", "ACL LIST", f"HGETALL {keyspace.ENROLLED}"):
        for each in (url, blob_url):
            with (
                redis.Redis.from_url(each) as client,
                pytest.raises(redis.exceptions.NoPermissionError),
            ):
                client.execute_command(*refused.split())


def test_a_file_is_not_replaced_unless_asked_and_then_the_old_one_is_void(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    path = handed(servers, "hospital-a", tmp_path)
    old = credentials.read(path)

    again = command(servers, "enroll", "hospital-a", "-o", str(path))
    assert isinstance(again.exception, ConfigError)
    assert credentials.read(path) == old
    assert is_let_in(old.urls()[0])

    handed(servers, "hospital-a", tmp_path, "--force")
    assert not is_let_in(old.urls()[0])
    assert is_let_in(credentials.read(path).urls()[0])


def test_users_outlive_a_crash_of_the_servers(servers: EmbeddedRedis, tmp_path: Path) -> None:
    path = handed(servers, "hospital-a", tmp_path)
    for role in server_pair.ROLES:
        servers.kill(role)
        servers.restart(role)

    assert all(map(is_let_in, credentials.read(path).urls()))


def test_users_that_a_server_has_forgotten_are_made_again(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    first, second = (handed(servers, name, tmp_path) for name in ("hospital-a", "hospital-b"))
    store = Store(servers.url, servers.blob_url)
    enrolment.revoke(store, "hospital-b", use_acl=True)
    user = credentials.read(first).users["all"].name
    store.servers.data.execute_command("ACL DELUSER", user)

    assert enrolment.restore_users(store) == [user]
    assert enrolment.restore_users(store) == []
    assert all(map(is_let_in, credentials.read(first).urls()))
    assert not is_let_in(credentials.read(second).urls()[0])


def users_of(servers: EmbeddedRedis) -> set[str]:
    store = Store(servers.url, servers.blob_url)
    return {
        user for each in (store.servers.control, store.servers.data) for user in each.acl_users()
    }


HASH = "#" + "0" * 64
EVIL = ["on", "nopass", "~*", "&*", "+@all"]


@pytest.mark.parametrize(
    "users",
    [
        {"evil": EVIL},
        {"evil": [HASH]},
        {"flq-client-zz": EVIL},
        {"flq-client-zz": [HASH, "#" + "1" * 64]},
        {"flq-client-zz": [HASH], "evil": EVIL},
        {"flq-client-hospital-b": [HASH]},
        {"flq-operator": [HASH]},
        {"default": EVIL},
    ],
)
def test_the_healer_makes_no_user_that_enrolling_would_not_make(
    servers: EmbeddedRedis, tmp_path: Path, users: dict[str, list[str]]
) -> None:
    store = Store(servers.url, servers.blob_url)
    before = users_of(servers)
    entry = {"key": "", "users": dict.fromkeys(("control", "data"), users)}
    store.control.redis.hset(keyspace.ENROLLED, "zz", json.dumps(entry))

    Healer(store, tmp_path).tick()

    assert users_of(servers) == before
    assert "zz" in enrolment.troubles(store)


def test_the_healer_takes_a_hash_from_an_entry_and_no_rule(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    path = handed(servers, "hospital-a", tmp_path)
    store = Store(servers.url, servers.blob_url)
    known = store.control.enrolments.get("hospital-a")
    assert known is not None
    user = credentials.read(path).users["all"].name
    rules = store.servers.control.acl_getuser(user)
    wider = {
        server: {name: [*items, "~*", "+@all"] for name, items in of_server.items()}
        for server, of_server in known.users.items()
    }
    store.control.enrolments.write("hospital-a", replace(known, users=wider))
    for each in (store.servers.control, store.servers.data):
        each.acl_deluser(user)

    assert enrolment.restore_users(store) == [user]
    assert store.servers.control.acl_getuser(user) == rules
    assert all(map(is_let_in, credentials.read(path).urls()))


def test_revoking_ends_no_user_but_the_clients_own(servers: EmbeddedRedis, tmp_path: Path) -> None:
    handed(servers, "hospital-a", tmp_path)
    handed(servers, "hospital-b", tmp_path)
    store = Store(servers.url, servers.blob_url)
    known = store.control.enrolments.get("hospital-a")
    assert known is not None
    widened = {
        server: {**of_server, "flq-client-hospital-b": [HASH], "flq-reader": [HASH]}
        for server, of_server in known.users.items()
    }
    store.control.enrolments.write("hospital-a", replace(known, users=widened))
    store.servers.control.acl_setuser("flq-reader", enabled=True)
    before = users_of(servers)

    printed = command(servers, "revoke", "hospital-a", "--no-acl").output
    assert "ACL DELUSER flq-client-hospital-a" in printed
    assert "hospital-b" not in printed
    enrolment.revoke(store, "hospital-a", use_acl=True)
    assert users_of(servers) == before - {"flq-client-hospital-a"}


def test_who_is_revoked_is_cut_off(servers: EmbeddedRedis, tmp_path: Path) -> None:
    read = credentials.read(handed(servers, "hospital-a", tmp_path))
    with redis.Redis.from_url(read.urls()[0], retry=None) as connected:
        assert connected.ping()
        done = command(servers, "revoke", "hospital-a")
        assert done.exception is None
        with pytest.raises(redis.ConnectionError):
            connected.ping()

    listed = json.loads(command(servers, "clients", "--json").output)
    assert [(entry["client"], entry["enrolled"]) for entry in listed] == [("hospital-a", "revoked")]
    for role in server_pair.ROLES:
        servers.kill(role)
        servers.restart(role)
    assert not is_let_in(read.urls()[0])
    handed(servers, "hospital-a", tmp_path, "--force")
    listed = json.loads(command(servers, "clients", "--json").output)
    assert listed[0]["enrolled"] == "yes"


@pytest.fixture
def old_servers(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with server_pair.start(tmp_path / "state", tcp=True, server=before_7()) as redis:
        yield redis


def every_url(read: Credentials) -> list[str]:
    """Both servers, as each of a client's users."""
    return [*read.urls(), *(url for pair in read.other_users().values() for url in pair)]


def test_on_redis_6_a_client_is_three_users_that_come_and_go_together(
    old_servers: EmbeddedRedis, tmp_path: Path
) -> None:
    read = credentials.read(handed(old_servers, "hospital-a", tmp_path))
    assert read.users.keys() == {"own", "read", "push"}
    assert len({login.password for login in read.users.values()}) == 3
    assert all(map(is_let_in, every_url(read)))

    # Forgotten by a server, each is made again.
    store = Store(old_servers.url, old_servers.blob_url)
    lost = sorted(login.name for login in read.users.values())
    store.servers.data.execute_command("ACL DELUSER", *lost)
    assert enrolment.restore_users(store) == lost
    assert all(map(is_let_in, every_url(read)))

    # Revoked, none is left: not its connections, nor after a restart of the servers.
    with contextlib.ExitStack() as stack:
        connected = [
            stack.enter_context(redis.Redis.from_url(url, retry=None)) for url in every_url(read)
        ]
        assert all(each.ping() for each in connected)
        assert command(old_servers, "revoke", "hospital-a").exception is None
        for each in connected:
            with pytest.raises(redis.ConnectionError):
                each.ping()
    for role in server_pair.ROLES:
        old_servers.kill(role)
        old_servers.restart(role)
    assert not any(map(is_let_in, every_url(read)))

    again = credentials.read(handed(old_servers, "hospital-a", tmp_path, "--force"))
    assert all(map(is_let_in, every_url(again)))
    assert not any(map(is_let_in, every_url(read)))


def test_on_redis_6_none_of_the_three_may_do_what_others_do(
    old_servers: EmbeddedRedis, tmp_path: Path
) -> None:
    read = credentials.read(handed(old_servers, "hospital-a", tmp_path))
    results = keyspace.results("demo-3f2a9c")
    refused = [
        "KEYS *",
        "FLUSHALL",
        "ACL LIST",
        f"HGETALL {keyspace.ENROLLED}",
        f"LTRIM {results} 1 0",
    ]
    refused += [f"DEL {results}", f"LRANGE {results} 0 -1", f"HSET {keyspace.client('b')} x y"]
    for url in every_url(read):
        with redis.Redis.from_url(url) as client:
            for line in refused:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*line.split())


def test_without_acl_the_rules_are_printed(servers: EmbeddedRedis, tmp_path: Path) -> None:
    path = tmp_path / FILE
    done = command(servers, "enroll", "hospital-a", "-o", str(path), "--no-acl")

    login = credentials.read(path).users["all"]
    lines = [line for line in done.output.splitlines() if line.startswith(f"user {login.name} ")]
    assert len(lines) == 2
    assert login.password not in done.output
    assert not is_let_in(credentials.read(path).urls()[0])
    for line, url in zip(lines, (servers.url, servers.blob_url), strict=True):
        with redis.Redis.from_url(url) as admin:
            # As a line of an aclfile, it is a list of arguments but for what is in parentheses.
            words = line.removeprefix("user ").replace(" (", "\n(").split("\n")
            admin.execute_command("ACL SETUSER", *words[0].split(), *words[1:])
    assert all(map(is_let_in, credentials.read(path).urls()))


def test_no_site_is_enrolled_on_a_server_without_a_password(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    admin = Store(servers.url, servers.blob_url).servers.data
    admin.execute_command("ACL SETUSER", "operator", "on", ">secret", "~*", "&*", "+@all")
    admin.execute_command("ACL SETUSER", "default", "nopass")
    port = admin.connection_pool.connection_kwargs["port"]

    def enroll(login: str, *options: str) -> Result:
        path = tmp_path / f"{secrets.token_hex(4)}.toml"
        environment = {
            "FLQ_REDIS_URL": servers.url,
            "FLQ_REDIS_BLOB_URL": f"redis://{login}127.0.0.1:{port}/0",
            "FLQ_STATE_DIR": str(servers.state_dir),
        }
        line = ["enroll", "hospital-a", "-o", str(path), *options]
        return CliRunner().invoke(cli, line, env=environment)

    refused = enroll("")
    assert isinstance(refused.exception, ConfigError)
    assert "default user needs no password" in str(refused.exception)
    assert list(tmp_path.glob("*.toml")) == []
    assert operator_key.find(servers.state_dir) is None
    assert enroll("", "--open-server").exception is None
    # Switched off it lets in no client, whatever its password.
    admin.execute_command("ACL SETUSER", "default", "off")
    assert enroll("operator:secret@").exception is None


def test_a_socket_that_no_other_user_reaches_needs_no_password(store: Store) -> None:
    assert not Users(store.servers).open_to_all()


@pytest.mark.parametrize("client", ["a_b", "aggregator", "pool", "", "../x"])
def test_what_is_no_client_is_not_enrolled(
    servers: EmbeddedRedis, tmp_path: Path, client: str
) -> None:
    done = command(servers, "enroll", "-o", str(tmp_path / FILE), "--", client)

    assert isinstance(done.exception, ConfigError)
    assert not (tmp_path / FILE).exists()


def test_revoking_a_stranger_is_reported(servers: EmbeddedRedis, tmp_path: Path) -> None:
    done = command(servers, "revoke", "hospital-z")

    assert str(done.exception).startswith(
        "CLIENT: hospital-z is not enrolled, so there is nothing to revoke"
    )
    assert "clients.exclude" in str(done.exception)
    assert "did you mean" not in str(done.exception)
    assert command(servers, "enroll", "-o", str(tmp_path / FILE), "hospital-b").exception is None
    done = command(servers, "revoke", "hopsital-b")
    assert str(done.exception).endswith("; did you mean hospital-b?")


# Credentials files

GOOD = Credentials(
    "hospital-a",
    "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=",
    "rediss://redis.example:6379/0",
    "redis+cluster://a:1,b:2/0",
    {"all": Login('us"er', "p@ss:/?#w\\rd")},
    {"ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
    "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
)


def test_a_file_has_what_was_written(tmp_path: Path) -> None:
    credentials.write(tmp_path / FILE, GOOD)

    read = credentials.read(tmp_path / FILE)
    assert read.tls["ca"].strip() == GOOD.tls["ca"]
    assert read.users == GOOD.users
    assert read.operator_key == GOOD.operator_key
    url, blob_url = read.urls()
    assert url.startswith(
        "rediss://us%22er:p%40ss%3A%2F%3F%23w%5Crd@redis.example:6379/0?ssl_ca_certs="
    )
    ca = Path(url.partition("ssl_ca_certs=")[2].replace("%2F", "/"))
    assert ca.read_text().strip() == GOOD.tls["ca"]
    assert ca.read_text().strip() == GOOD.tls["ca"]  # Each connection reads it again.
    assert blob_url == "redis+cluster://us%22er:p%40ss%3A%2F%3F%23w%5Crd@a:1,b:2/0"


def test_a_copy_that_systemd_hands_over_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode seems to let root's group read: that is how a right for one account (an ACL) looks."""
    credentials.write(tmp_path / FILE, GOOD)
    if (tmp_path / FILE).stat().st_gid != 0:
        pytest.skip("systemd's copies are of root's group, which only root can give to a file")
    (tmp_path / FILE).chmod(0o440)
    with pytest.raises(ConfigError, match="run chmod 600"):
        credentials.read(tmp_path / FILE)

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert credentials.read(tmp_path / FILE).signing_key == GOOD.signing_key
    (tmp_path / FILE).chmod(0o444)
    with pytest.raises(ConfigError, match="run chmod 600"):
        credentials.read(tmp_path / FILE)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    credentials.write(tmp_path / FILE, GOOD)
    (tmp_path / FILE).chmod(mode)

    with pytest.raises(ConfigError, match="run chmod 600"):
        credentials.read(tmp_path / FILE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("signing_key = ", "signing_key == ", "not valid TOML"),
        ("signing_key = ", "signing = ", "lacks a field"),
        ('signing_key = "nW', 'signing_key = "', "signing_key is not a key"),
        ('operator_key = "', 'operator_key = "xx', "operator_key is not a key"),
        ('client = "hospital-a"', 'client = "pool"', "'pool' is not a client id"),
        ("[redis]", "[rediss]", "lacks a field"),
    ],
)
def test_a_bad_file_is_refused_and_never_quoted(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / FILE
    credentials.write(path, GOOD)
    path.write_text(path.read_text().replace(old, new, 1))

    with pytest.raises(ConfigError, match=message) as caught:
        credentials.read(path)
    assert GOOD.signing_key[3:] not in str(caught.value)


def test_a_worker_is_refused_before_it_starts(tmp_path: Path) -> None:
    path = tmp_path / FILE
    credentials.write(path, GOOD)

    def start(*options: str) -> FLQueueError:
        error = CliRunner().invoke(cli, ["worker", *options]).exception
        assert isinstance(error, FLQueueError)
        return error

    other = start("client", "--credentials", str(path), "--client", "hospital-b")
    assert "is of hospital-a, not of hospital-b" in str(other)
    assert "not of evaluator" in str(start("evaluator", "--credentials", str(path)))
    assert "is missing" in str(start("client"))
    assert "cannot be read" in str(start("client", "--credentials", str(tmp_path / "no.toml")))


def start_worker(
    servers: EmbeddedRedis, folder: Path, role: str, name: str, *options: str
) -> subprocess.Popen[bytes]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FLQ_REDIS")}
    line = [sys.executable, "-m", "fl_queue", "worker", role, *options]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(line, stdout=log, stderr=log, env=clean)
