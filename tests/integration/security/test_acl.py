"""What a client's Redis users may do and may not, on real servers with selectors and without."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.cli.acl import PLACEHOLDER
from fl_queue.common import redis_url
from fl_queue.store import acl, credentials, keyspace
from fl_queue.store.embedded.server_binary import build_of
from fl_queue.store.embedded.server_pair import EmbeddedRedis, start
from tests.support.federation import Federation
from tests.support.server_binaries import before_7, chosen_server

pytestmark = pytest.mark.timeout(180)

PASSWORD = "for-tests"
SECRET = "#" + hashlib.sha256(PASSWORD.encode()).hexdigest()
RUN = "demo-3f2a9c"
RESULTS, QUEUE, OTHERS = keyspace.results(RUN), "rq:queue:flq-client-a", "rq:queue:flq-client-a-b"
UPDATE = keyspace.chunk(keyspace.update_blob("a", RUN, "d1"), 0)
OTHERS_UPDATE = keyspace.chunk(keyspace.update_blob("a-b", RUN, "d1"), 0)
MODEL = keyspace.chunk(keyspace.model_blob(RUN, "d1"), 0)
PARTIAL = keyspace.chunk(keyspace.partial_blob(RUN, "d1"), 0)
NEXT_ID = "18446744073709551615-18446744073709551614"
JOB, OTHERS_JOB = f"rq:job:a_{RUN}_1_00", f"rq:job:a-b_{RUN}_1_00"

#: Of client a; a-b is another one.
FORBIDDEN: list[tuple[object, ...]] = [
    # The results list, but for its end.
    *[("DEL", RESULTS), ("UNLINK", RESULTS), ("LPOP", RESULTS), ("RPOP", RESULTS)],
    *[("LTRIM", RESULTS, 1, 0), ("SET", RESULTS, "x"), ("LSET", RESULTS, 0, "x")],
    *[("RENAME", RESULTS, UPDATE), ("RENAME", UPDATE, RESULTS), ("EXPIRE", RESULTS, 1)],
    *[("LRANGE", RESULTS, 0, -1), ("LINDEX", RESULTS, 0), ("LREM", RESULTS, 0, "x")],
    *[("LPUSH", RESULTS, "x"), ("HSET", RESULTS, "x", "y"), ("SADD", RESULTS, "x")],
    *[("LMOVE", RESULTS, UPDATE, "LEFT", "LEFT"), ("LMOVE", QUEUE, RESULTS, "LEFT", "LEFT")],
    *[("COPY", RESULTS, UPDATE), ("SORT", RESULTS, "STORE", UPDATE), ("DUMP", RESULTS)],
    *[("BLMOVE", RESULTS, QUEUE, "LEFT", "LEFT", 1), ("LINSERT", RESULTS, "BEFORE", "x", "y")],
    # What others sent, hold, or are about to send.
    *[("GET", OTHERS_UPDATE), ("SET", OTHERS_UPDATE, "x"), ("DEL", OTHERS_UPDATE)],
    *[("EXPIRE", OTHERS_UPDATE, 1), ("MGET", UPDATE, OTHERS_UPDATE), ("DEL", UPDATE, MODEL)],
    *[("SET", keyspace.admitted(RUN, "a-b"), "x"), ("DEL", keyspace.admitted(RUN, "a-b"))],
    *[("HSET", keyspace.turns(RUN, 1), "a-b", 9), ("DEL", keyspace.turns(RUN, 1))],
    *[("LRANGE", keyspace.taken(RUN, 1), 0, -1), ("RPUSH", keyspace.taken(RUN, 1), "x")],
    *[("HGETALL", keyspace.partial(RUN)), ("GET", PARTIAL), ("SET", PARTIAL, "x")],
    *[("SET", MODEL, "x"), ("DEL", MODEL), ("EXPIRE", MODEL, 1), ("SET", keyspace.DATA_SERVER, "x")],
    *[("DEL", keyspace.owner(RUN, 1)), ("SET", keyspace.owner(RUN, 1), "x")],
    # Another client's queue, jobs, hash, events, leases.
    *[("LRANGE", OTHERS, 0, -1), ("RPUSH", OTHERS, "x"), ("DEL", OTHERS)],
    *[("HGETALL", OTHERS_JOB), ("HSET", OTHERS_JOB, "data", "x"), ("DEL", OTHERS_JOB)],
    *[("HSET", keyspace.client("a-b"), "x", "y"), ("DEL", keyspace.client_holder("a-b"))],
    *[("SET", keyspace.client_facts("a-b", RUN), "x"), ("HSET", keyspace.sites(RUN), "a", "{}")],
    *[("XADD", keyspace.client_events("a-b"), "*", "event", "{}"), ("DEL", "flq:worker:a-b_00")],
    *[("HSET", "rq:worker:a-b_00", "x", "y"), ("HSET", "rq:job:aggregator_x", "data", "x")],
    *[("RPUSH", "rq:queue:flq-aggregate", "x"), ("SADD", "rq:queues", "x"), ("SREM", "rq:workers", "x")],
    # Runs, rounds, receipts, who is there.
    *[("HSET", keyspace.run(RUN), "state", "failed"), ("DEL", keyspace.run(RUN))],
    *[("HSET", keyspace.round_(RUN, 1), "quorum", 0), ("SET", keyspace.config(RUN), "[]")],
    *[("SET", keyspace.manifest(RUN), "{}"), ("HSET", keyspace.accepted(RUN), "a", "{}"), ("HSET", keyspace.round_jobs(RUN, 1), "a", "{}")],
    *[("HGETALL", keyspace.round_updates(RUN, 1)), ("HSET", keyspace.round_updates(RUN, 1), "a", "{}")],
    *[("XADD", keyspace.events(RUN), NEXT_ID, "event", "{}"), ("RPUSH", keyspace.history(RUN), "{}")],
    *[("DEL", keyspace.events(RUN)), ("HSET", keyspace.RUNS, "x", "y"), ("DEL", keyspace.HEALER)],
    *[("ZADD", keyspace.CLIENTS, 1, "x"), ("ZREM", keyspace.CLIENTS, "a-b"), ("HSET", keyspace.CLOCK, "x", "y")],
    *[("HSET", keyspace.ENROLLED, "a", "{}"), ("SET", "rq:suspended", 1), ("SET", "anything", 1)],
    # The server.
    *[("EVAL", "return 1", 0), ("EVALSHA", "0" * 40, 0), ("SCRIPT", "LOAD", "return 1")],
    *[("EVAL", "return redis.call('DEL', KEYS[1])", 1, UPDATE), ("SCRIPT", "FLUSH")],
    *[("ACL", "SETUSER", "x"), ("ACL", "LIST"), ("ACL", "WHOAMI"), ("CONFIG", "GET", "*")],
    *[("CONFIG", "SET", "maxmemory", 1), ("FLUSHALL",), ("FLUSHDB",), ("DEBUG", "SLEEP", 0)],
    *[("SHUTDOWN", "NOSAVE"), ("KEYS", "*"), ("SCAN", 0), ("RANDOMKEY",), ("DBSIZE",), ("MONITOR",)],
    *[("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "LIST"), ("CLIENT", "PAUSE", 1)],
    *[("SWAPDB", 0, 1), ("MOVE", UPDATE, 1), ("REPLICAOF", "NO", "ONE"), ("SAVE",), ("BGSAVE",)],
    *[("MIGRATE", "localhost", 1, UPDATE, 0, 1), ("RESTORE", UPDATE, 0, "x"), ("SLOWLOG", "GET")],
    *[("MODULE", "LIST"), ("LATENCY", "RESET"), ("MEMORY", "USAGE", UPDATE)],
    *[("PUBLISH", "elsewhere", "x"), ("SUBSCRIBE", keyspace.ARRIVALS), ("PSUBSCRIBE", "*")],
]  # fmt: skip
ALLOWED: list[tuple[object, ...]] = [
    *[("RPUSH", RESULTS, "element"), ("PUBLISH", keyspace.ARRIVALS, RUN), ("INFO", "server")],
    *[("SET", UPDATE, "x", "EX", 60), ("GET", UPDATE), ("EXPIRE", UPDATE, 60), ("DEL", UPDATE)],
    *[("SET", keyspace.admitted(RUN, "a"), "t:1"), ("DEL", keyspace.admitted(RUN, "a"))],
    *[("MGET", keyspace.admitted(RUN, "b"), keyspace.admitted(RUN, "c")), ("GET", MODEL)],
    ("HGETALL", keyspace.turns(RUN, 1)),
    *[
        ("HGETALL", keyspace.run(RUN)),
        ("HGETALL", keyspace.round_(RUN, 1)),
        ("GET", keyspace.config(RUN)),
    ],
    *[("HGETALL", keyspace.round_(RUN, 1234567)), ("GET", keyspace.manifest(RUN))],
    ("HGET", keyspace.accepted(RUN), "a"),
    *[
        ("HGET", keyspace.round_jobs(RUN, 1), "a"),
        ("HSET", keyspace.client("a"), "num_examples", 1),
    ],
    *[("HSET", keyspace.client_holder("a"), "token", "t"), ("HSET", "flq:worker:a_00", "x", "y")],
    ("SET", keyspace.client_facts("a", RUN), "x", "EX", 60),
    *[("XADD", keyspace.client_events("a"), NEXT_ID, "event", "{}"), ("RPUSH", QUEUE, "x")],
    *[("LMOVE", QUEUE, f"{QUEUE}:intermediate", "LEFT", "LEFT"), ("HSET", JOB, "status", "x")],
]


@pytest.fixture(params=["selectors", "6.2"])
def server(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[EmbeddedRedis, tuple[int, int]]]:
    """Servers with selectors, and some without; and their version."""
    binary = chosen_server() if request.param == "selectors" else before_7()
    with start(tmp_path / "state", server=binary) as servers:
        yield servers, build_of(binary).version


def connections(
    servers: EmbeddedRedis, version: tuple[int, int], client: str
) -> dict[str, redis.Redis]:
    """A client's users on the data server, as if it were the control server too: purpose -> connection."""
    with redis.Redis.from_url(servers.blob_url) as operator:
        made = {}
        for user in acl.users("client", client, version):
            operator.execute_command("ACL", "SETUSER", *user.setuser(SECRET))
            url = redis_url.with_login(servers.blob_url, user.name, PASSWORD, {})
            made[user.purpose] = redis.Redis.from_url(url)
    return made


def refusal(connection: redis.Redis, command: tuple[object, ...]) -> str:
    """Why a command is refused; empty when it is not."""
    try:
        connection.execute_command(*command)
    except redis.exceptions.NoPermissionError as exc:
        return str(exc)
    except redis.ResponseError as exc:
        # DEBUG is off by itself on newer servers.
        return str(exc) if "DEBUG command not allowed" in str(exc) else ""
    return ""


def test_what_a_client_may_and_may_not(server: tuple[EmbeddedRedis, tuple[int, int]]) -> None:
    users = connections(*server, "a")
    may = {
        command: [purpose for purpose, user in users.items() if not refusal(user, command)]
        for command in FORBIDDEN
    }

    assert {command: whose for command, whose in may.items() if whose} == {}
    assert len(FORBIDDEN) > 100
    for command in ALLOWED:
        purpose = (
            acl.user_for_command(str(command[0]), str(command[1])) if len(users) > 1 else "all"
        )
        assert refusal(users[purpose], command) == "", command
    for user in users.values():
        user.close()


def enrolled(federation: Federation, version: tuple[int, int], client: str, folder: Path) -> Path:
    """A credentials file of a client, as the operator makes it: one user, or three."""
    path = folder / f"{client}.toml"
    environment = {"FLQ_REDIS_URL": federation.redis.url}
    environment["FLQ_REDIS_BLOB_URL"] = federation.redis.blob_url
    environment["FLQ_STATE_DIR"] = str(federation.redis.state_dir)
    done = CliRunner().invoke(cli, ["enroll", client, "-o", str(path)], env=environment)
    assert done.exception is None, done.output
    purposes = {user.purpose for user in acl.users("client", client, version)}
    assert credentials.read(path).users.keys() == purposes
    return path


def as_role(servers: EmbeddedRedis, version: tuple[int, int], role: acl.Role) -> list[str]:
    """Both URLs as the user of a role of the operator's side."""
    made = []
    for url in (servers.url, servers.blob_url):
        [user] = acl.users(role, "", version)
        with redis.Redis.from_url(url) as operator:
            operator.execute_command("ACL", "SETUSER", *user.setuser(SECRET))
        made.append(redis_url.with_login(url, user.name, PASSWORD, {}))
    return made


def enrolling(user: redis.Redis, role: str, version: tuple[int, int]) -> None:
    """Only the operator enrols, or exchanges a key; an aggregator without selectors may, too."""
    may = role == "operator" or (role == "aggregator" and version < acl.SELECTORS)
    write = ("EVAL", "return redis.call('HSET', KEYS[1], 'a', '{}')", 1, keyspace.ENROLLED)
    for command in (("HSET", keyspace.ENROLLED, "a", "{}"), ("DEL", keyspace.ENROLLED), write):
        assert bool(refusal(user, command)) != may, (role, command)
    assert bool(refusal(user, ("RENAME", keyspace.RUNS, keyspace.ENROLLED))) or may
    reads = role in ("operator", "aggregator") or version >= acl.SELECTORS
    assert (refusal(user, ("HGETALL", keyspace.ENROLLED)) == "") == reads


def test_the_other_roles(server: tuple[EmbeddedRedis, tuple[int, int]]) -> None:
    servers, version = server
    for role in ("aggregator", "evaluator", "pool", "operator"):
        _, url = as_role(servers, version, role)
        with redis.Redis.from_url(url) as user:
            assert refusal(user, ("EVAL", "return 1", 0)) == ""
            for admin in (
                ("CONFIG", "SET", "maxmemory", 1),
                ("FLUSHALL",),
                ("SHUTDOWN",),
                ("MONITOR",),
            ):
                assert refusal(user, admin), role
            assert bool(refusal(user, ("ACL", "LIST"))) == (role != "operator")
            enrolling(user, role, version)
    _, url = as_role(servers, version, "reader")
    with redis.Redis.from_url(url) as reader:
        for command in FORBIDDEN[:22]:
            can = refusal(reader, command) == ""
            assert not can or (version < acl.SELECTORS and command[0] in ("LRANGE", "LINDEX"))
        if version >= acl.SELECTORS:
            assert all(refusal(reader, ("GET", key)) for key in (UPDATE, MODEL, PARTIAL))
        assert refusal(reader, ("LLEN", RESULTS)) == ""


@pytest.mark.parametrize("who", [[], ["a", "b-2"]])
def test_the_command_prints_what_a_server_takes(
    server: tuple[EmbeddedRedis, tuple[int, int]], who: list[str]
) -> None:
    servers, version = server
    options = ["acl", *who, "--server-version", "7.0" if version >= acl.SELECTORS else "6.2"]
    commands = CliRunner().invoke(cli, [*options, "--format", "setuser"]).stdout.splitlines()
    with redis.Redis.from_url(servers.url) as operator:
        for command in commands:
            operator.execute_command(*shlex.split(command.replace(PLACEHOLDER, SECRET)))
        names_there = {line.split()[1] for line in map(str, operator.acl_list())}
    printed = json.loads(CliRunner().invoke(cli, [*options, "--json"]).stdout)
    lines = CliRunner().invoke(cli, options).stdout.splitlines()

    assert names_there == {"default", *(user["name"] for user in printed)}
    assert lines == [
        f"user {user['name']} on {PLACEHOLDER} {' '.join(user['rules'])}" for user in printed
    ]


#: Asynchronous rounds of clients that keep something: they look at rounds that others opened.
UNHURRIED = (
    "round.mode=async", "round.cohort=1.0", "round.buffer=1", "run.rounds=6", "redis.inline_bytes=0",
    'model.private=["bias"]', "update.codec=topk", "update.fraction=0.1", "update.error_feedback=true",
)  # fmt: skip


def test_a_whole_run_with_clients_under_their_users(
    server: tuple[EmbeddedRedis, tuple[int, int]], tmp_path: Path
) -> None:
    servers, version = server
    environment = dict(
        zip(
            ("FLQ_REDIS_URL", "FLQ_REDIS_BLOB_URL"),
            as_role(servers, version, "aggregator"),
            strict=True,
        )
    )
    federation = Federation(servers, tmp_path, 0, environment)
    try:
        for client in ("site-1", "site-2"):
            federation.start(
                client, "--credentials", str(enrolled(federation, version, client, tmp_path))
            )
        # Chunks, and room for one update at a time.
        run = federation.begin(
            "guarded", "round.cohort=2", "run.rounds=2", "redis.inline_bytes=0", "redis.unmerged_bytes=1",
            "security.require_enrolment=true",
        )  # fmt: skip
        state = federation.finish(run)
        unhurried = federation.begin("unhurried", *UNHURRIED, "security.require_enrolment=true")
        ended = federation.finish(unhurried)
        url, blob_url = as_role(servers, version, "reader")
        read = [
            CliRunner().invoke(
                cli, [*command, "--redis-url", url, "--blob-url", blob_url], catch_exceptions=False
            )
            for command in (
                ["status"],
                ["status", "guarded"],
                ["history", "guarded"],
                ["clients"],
                ["events", "guarded"],
            )
        ]
        records, versions_made = federation.committed(run), federation.committed(unhurried)
        notes = [
            receipt.environment.get("client_state", "")
            for record in versions_made
            for receipt in federation.store.control.receipts.of_round(
                unhurried, record.round
            ).values()
        ]
        denied = {
            (entry["context"], entry["object"], entry["username"])
            for url in (servers.url, servers.blob_url)
            for entry in redis.Redis.from_url(url, decode_responses=True).acl_log()
        }
    finally:
        federation.close()

    assert (state.state, [len(record.accepted) for record in records]) == ("completed", [2, 2])
    # An update of each version is of a job that began before the version it is merged into.
    assert (ended.state, [len(record.accepted) for record in versions_made]) == (
        "completed",
        [1] * 6,
    )
    assert any(record.carried for record in versions_made)
    assert any(note.startswith("of round") for note in notes)
    assert not any("missing" in note for note in notes)
    # They do not even try; but for the healer, which asks once whether users were lost.
    assert {entry for entry in denied if not entry[1].startswith("acl")} == set()
    assert {entry[2] for entry in denied} <= {"flq-aggregator"}
    assert [done.exit_code for done in read] == [0] * 5
    logs = "".join((tmp_path / f"site-{number}.log").read_text() for number in (1, 2))
    assert "Traceback" not in logs
