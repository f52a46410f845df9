"""Attacks on secure rounds of real sites by an operator that has both servers, and writes there what it likes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_queue.client import outbox
from fl_queue.coordinator.operations import controls
from fl_queue.protocol import message, signing
from fl_queue.protocol.records import INPUTS
from fl_queue.store import keyspace
from fl_queue.store.jobs import dispatch
from tests.support.federation import wait_for
from tests.support.secure_federation import SECURE, SecureFederation, of_four

ROUND = (
    *SECURE, "round.cohort=4", "round.quorum=3", "run.rounds=1", "run.evaluate_every=0",
    "round.grace_s=0.2", "secure.keys_s=100.0", "secure.unmask_s=60.0",
)  # fmt: skip
#: What sites keep for themselves below the state folder that they share with the operator here.
OF_SITES = {"secure", "outbox", "client-states", "cache"}


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[SecureFederation]:
    with of_four(tmp_path_factory.mktemp("federation")) as made:
        yield made


def _kept(federation: SecureFederation, run: str, client: str, suffix: str) -> Path:
    folder = federation.sites[client].outbox
    return outbox.path_of(folder, run, 1, client, suffix)


def _begun(federation: SecureFederation, name: str) -> tuple[str, int, dict[str, bytes]]:
    """A round whose roster is not frozen yet, its stopped aggregator, and the updates that wait to be masked."""
    fired = federation.arm("roster.stored", "stop", "aggregator-")
    run = federation.begin(name, *ROUND)
    wait_for("the roster", fired.exists)
    plain = {}
    for client in federation.clients:
        path = _kept(federation, run, client, outbox.TRAINED)
        wait_for("an update", path.exists)
        found = outbox.read(path)
        assert found is not None
        plain[client] = bytes(found[1])
    return run, int(fired.read_text()), plain


def _held(federation: SecureFederation) -> bytes:
    """Everything on both servers, and in the operator's files."""
    found = []
    for server in (federation.store.control.redis, federation.store.data.redis):
        for key in server.keys("*"):
            kind = server.type(key).decode()
            read = {
                "string": server.get,
                "hash": server.hgetall,
                "list": lambda name, one=server: one.lrange(name, 0, -1),
                "set": server.smembers,
                "zset": lambda name, one=server: one.zrange(name, 0, -1),
                "stream": server.xrange,
                "none": lambda name: b"",  # Gone since.
            }[kind]
            found.append(key + b" " + _joined(read(key)))
    state = federation.redis.state_dir
    files = [path for path in state.rglob("*") if path.is_file()]
    own = [path for path in files if path.relative_to(state).parts[0] not in OF_SITES]
    own.append(federation.folder / "aggregator.log")
    return b"\n".join([*found, *(path.read_bytes() for path in own)])


def _joined(value: object) -> bytes:
    """All bytes in a value of Redis."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b" ".join(_joined(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set):
        return b" ".join(_joined(part) for part in value)
    return b""


def _correlation(body: bytes, plain: bytes) -> float:
    true = np.frombuffer(plain, np.float32).astype(np.float64)
    seen = np.frombuffer(body[: 8 * true.size], np.int64).astype(np.float64)
    return abs(float(np.corrcoef(seen, true)[0, 1]))


def test_nothing_of_one_site_is_on_a_server_or_with_the_operator(
    federation: SecureFederation,
) -> None:
    run, aggregator, plain = _begun(federation, "seen")
    late = federation.arm("update.masked", "stop", "site-4_")
    unmasked = federation.arm("sum.unmasked", "stop", "aggregator-")
    os.kill(aggregator, signal.SIGCONT)
    wait_for("the late update", late.exists)
    wait_for("the sum", unmasked.exists)
    held = _held(federation)
    bodies = dict[str, bytes]()
    for client in federation.clients:
        found = outbox.read(_kept(federation, run, client, outbox.SUFFIX))
        assert found is not None
        bodies[client] = bytes(found[1])
    receipts = federation.store.control.receipts.of_round(run, 1)
    os.kill(int(unmasked.read_text()), signal.SIGCONT)
    os.kill(int(late.read_text()), signal.SIGCONT)
    state = federation.finish(run)

    held_later = _held(federation)
    bodies_held = [body for body in bodies.values() if body[:64] in held]
    assert len(bodies_held) == 3
    for client, body in bodies.items():
        assert _correlation(body, plain[client]) < 5 / np.sqrt(len(plain[client]) / 4)
        changed = np.flatnonzero(np.frombuffer(plain[client], np.float32))
        middle = 4 * int(changed[len(changed) // 2])
        assert plain[client][middle : middle + 16] not in held
        assert plain[client][middle : middle + 16] not in held_later
    assert {
        (one.num_examples, one.weight, one.train_s, *one.environment) for one in receipts.values()
    } == {(0, 0, 0.0, INPUTS)}
    control = federation.store.control.redis
    for client in federation.clients:
        assert b"num_examples" not in control.hgetall(keyspace.client(client))
        events = federation.client_events(client)
        assert not [event for event in events if {"accuracy", "loss"} & event.keys()]
    assert state.state == "completed"


def test_a_round_that_is_turned_into_a_plain_one_gets_no_update(
    federation: SecureFederation,
) -> None:
    run, aggregator, _ = _begun(federation, "turned")
    control = federation.store.control.redis
    control.hdel(keyspace.round_(run, 1), "stage")
    ticket = dispatch.tickets(federation.store, run, 1)["site-1"]
    dispatch.replace(federation.store, keyspace.round_jobs(run, 1), "site-1", ticket)

    def sent() -> list[str]:
        waiting = federation.store.data.redis.lrange(keyspace.results(run), 0, -1)
        opened = [signing.opened(element) for element in waiting]
        headers = [message.unpack(one.element, max_body_bytes=1 << 30)[0] for one in opened if one]
        return [each.reason for each in headers if each.client == "site-1" and each.kind != "keys"]

    assert wait_for("an answer", sent) == ["round 1 was a secure one when this site made its keys"]
    os.kill(aggregator, signal.SIGCONT)
    controls.cancel(federation.store, "turned")
