"""Enrolment is decided on the operator's disk: an entry written into Redis changes nothing, and is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fl_queue.cli import cli
from fl_queue.coordinator.aggregator.authentication import MessageAuthenticator
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.enrolment import RedisEndpoints
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import eligibility, lifecycle, runs
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import ConfigError, ForgedMessage
from fl_queue.protocol import message, operator_key, signing
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import Enrolment
from fl_queue.store import Store, credentials, keyspace
from tests.support.manual_run import ManualRun

RUN = "pilot-000001"
A = "hospital-a"


def enrolled(store: Store, client: str = A) -> credentials.Credentials:
    """A client that is enrolled from this machine."""
    place = RedisEndpoints(store.servers.url, store.servers.blob_url)
    return enrolment.enroll(store, client, place, 600, use_acl=False).credentials


def entry(store: Store, client: str = A) -> dict[str, object]:
    found = store.control.enrolments.entries()[client.encode()]
    return dict(json.loads(found))


def element(client: str = A, run: str = RUN) -> bytes:
    header = Header(kind="failure", run=run, round=1, client=client, token="t", reason="made up")
    return message.pack(header, None)


def is_let_in(store: Store, sealed: bytes, required: bool = True) -> bool:
    try:
        MessageAuthenticator(store.control, RUN, required).open(sealed)
    except ForgedMessage:
        return False
    return True


def events(store: Store, run: str, kind: str) -> list[dict[str, Any]]:
    found = store.control.events.read({keyspace.events(run): "0-0"}, None)
    return [event for _, _, event in found if event["event"] == kind]


def other_machine(store: Store, folder: Path) -> Store:
    """Another machine of the operator, with a copy of the key."""
    assert store.state_dir is not None
    folder.mkdir()
    copy = folder / operator_key.FILE
    copy.write_bytes((store.state_dir / operator_key.FILE).read_bytes())
    copy.chmod(0o600)
    return Store.open(store.servers.url, store.servers.blob_url, folder)


def with_my_key(store: Store) -> str:
    """What an attacker writes: the entry with another key."""
    return json.dumps(entry(store) | {"key": MINE[1]})


def signed_by_me(store: Store) -> str:
    known = replace(Enrolment.from_json(json.dumps(entry(store))), key=MINE[1], serial=2**60)
    pins = Store(
        store.servers.url, store.servers.blob_url, state_dir=ELSEWHERE
    ).control.enrolments.pins
    return pins.signed(A, known, None).to_json()


def of_another_client(store: Store) -> str:
    return json.dumps(entry(store, "hospital-b"))


MINE = signing.new_key()
ELSEWHERE = Path()
CHANGES: dict[str, tuple[Callable[[Store], str], str]] = {
    "another key": (with_my_key, "not signed with the operator's key"),
    "signed with another operator's key": (signed_by_me, "not signed with the operator's key"),
    "the entry of another client": (of_another_client, "not signed with the operator's key"),
    "a higher limit": (
        lambda store: json.dumps(entry(store) | {"max_examples": 0}),
        "not signed with the operator's key",
    ),
    "revoked": (
        lambda store: json.dumps(entry(store) | {"revoked_at": 1.0}),
        "not signed with the operator's key",
    ),
    "no signature": (
        lambda store: json.dumps(entry(store) | {"signature": ""}),
        "not signed with the operator's key",
    ),
    "garbage": (lambda store: "{", "cannot be read"),
    "a bomb": (lambda store: "[" * 100_000, "cannot be read"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_entry_is_refused_and_reported(
    store: Store, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = enrolled(store)
    enrolled(store, "hospital-b")
    monkeypatch.setitem(globals(), "ELSEWHERE", tmp_path / "attacker")
    operator_key.create(tmp_path / "attacker" / operator_key.FILE)
    honest = store.control.enrolments.get(A)
    make, trouble = CHANGES[change]
    store.control.redis.hset(keyspace.ENROLLED, A, make(store))

    forged = signing.seal(element(), A, MINE[0])
    assert not is_let_in(store, forged)
    assert is_let_in(store, signing.seal(element(), A, site.signing_key))
    assert store.control.enrolments.get(A) == honest
    assert store.control.enrolments.all()[A] == honest
    assert store.control.enrolments.revoked([A]) == set()
    assert trouble in enrolment.troubles(store)[A]
    # A second machine of the operator has no pin yet: no site counts as enrolled on the word of Redis.
    with other_machine(store, tmp_path / "other") as other:
        assert not is_let_in(other, forged)


def test_a_removed_entry_changes_nothing(store: Store) -> None:
    site = enrolled(store)
    store.control.redis.delete(keyspace.ENROLLED)

    assert is_let_in(store, signing.seal(element(), A, site.signing_key))
    assert not is_let_in(store, element(), required=False)
    assert enrolment.troubles(store) == {A: "it was removed"}


def test_no_site_enrols_by_writing_to_redis(store: Store) -> None:
    enrolled(store)
    store.control.redis.hset(keyspace.ENROLLED, "mallory", Enrolment(MINE[1]).to_json())
    store.control.redis.hset(keyspace.ENROLLED, "../../x", Enrolment(MINE[1]).to_json())
    store.control.redis.hset(keyspace.ENROLLED, b"\xff", b"\xff")

    assert not is_let_in(store, signing.seal(element("mallory"), "mallory", MINE[0]))
    assert store.control.enrolments.all().keys() == {A}
    assert store.control.enrolments.get("../../x") is None
    assert enrolment.troubles(store).keys() == {"../../x", "mallory", "\ufffd"}


def test_who_was_revoked_is_not_put_back(store: Store, tmp_path: Path) -> None:
    site = enrolled(store)
    old = store.control.enrolments.entries()[A.encode()]
    other = other_machine(store, tmp_path / "other")
    Healer(other, tmp_path / "other").tick()
    enrolment.revoke(store, A, use_acl=False)
    update = signing.seal(element(), A, site.signing_key)
    Healer(other, tmp_path / "other").tick()  # The other machine learns of it.

    store.control.redis.hset(keyspace.ENROLLED, A, old)
    for machine in (store, other):
        assert not is_let_in(machine, update)
        assert machine.control.enrolments.revoked([A]) == {A}
        assert enrolment.troubles(machine) == {A: "it is an older one that was put back"}
    # Revoking again writes it there again.
    enrolment.revoke(other, A, use_acl=False)
    assert enrolment.troubles(store) == {}

    # Enrolled again, with another key; the old one is void on both.
    again = enrolled(store)
    Healer(other, tmp_path / "other").tick()
    store.control.redis.hset(keyspace.ENROLLED, A, old)
    for machine in (store, other):
        assert not is_let_in(machine, update)
        assert is_let_in(machine, signing.seal(element(), A, again.signing_key))
    other.close()


def test_a_client_enrolled_on_one_machine_is_enrolled_on_all(store: Store, tmp_path: Path) -> None:
    enrolled(store)
    with other_machine(store, tmp_path / "other") as other:
        site = enrolled(other, "hospital-b")
        update = signing.seal(element("hospital-b"), "hospital-b", site.signing_key)
        assert is_let_in(store, update)
        assert enrolment.troubles(store) == {}
        Healer(store, tmp_path).tick()
        store.control.redis.delete(keyspace.ENROLLED)
        assert is_let_in(store, update)


def test_a_forged_update_gets_a_receipt_and_the_change_an_event(
    store: Store, tmp_path: Path
) -> None:
    keys = {client: enrolled(store, client).signing_key for client in ("a", "b")}
    hand = ManualRun(store, tmp_path, ("a", "b"), 10, "security.require_enrolment=true", keys=keys)
    store.control.redis.hset(
        keyspace.ENROLLED, "a", json.dumps(entry(store, "a") | {"key": MINE[1]})
    )
    intake = hand.intake()
    hand.keys["a"] = MINE[0]
    hand.update("a")
    hand.take(intake, 1)

    found = store.control.receipts.of_round(hand.run, hand.round.number)
    assert {who: receipt.status for who, receipt in found.items()} == {"a:forged": "forged"}
    for _ in range(2):
        Healer(store, tmp_path).tick()
    changed = events(store, hand.run, "enrolment_changed")
    assert {(event["client"], event["reason"]) for event in changed} == {
        ("a", "it is not signed with the operator's key")
    }
    assert MINE[1] not in json.dumps(changed)
    line = "the entry of a: it is not signed with the operator's key"
    assert line in command(store, "status").output
    assert line in command(store, "status", "by-hand").output
    found = command(store, "doctor")
    assert "entry of a: it is not signed with the operator's key" in found.output
    assert found.exit_code == 1


def test_requiring_enrolment_is_not_switched_off_in_redis(store: Store, tmp_path: Path) -> None:
    keys = {client: enrolled(store, client).signing_key for client in ("a", "b")}
    hand = ManualRun(store, tmp_path, ("a", "b"), 10, "security.require_enrolment=true", keys=keys)
    segments = store.control.runs.config_segments(hand.run)
    segments[-1]["config"]["security"]["require_enrolment"] = False
    store.control.redis.set(keyspace.config(hand.run), json.dumps(segments))

    changed = current_config(store, hand.run)
    assert not changed.security.require_enrolment
    assert eligibility.not_admitted(store, hand.state, changed, ["a", "c"]).keys() == {"c"}
    hand.config = changed
    intake = hand.intake()
    for client in ("c", "b"):
        body = hand.body(client)
        hand.store.data.results.push(
            hand.run, message.pack(hand.header("update", client, body), body)
        )
    hand.take(intake, 2)
    assert intake.received() == 0
    reasons = [event["reason"] for event in events(store, hand.run, "update_rejected")]
    assert sorted(reasons) == [f"not signed, in the name of {client}" for client in "bc"]

    # Continuing the run on this machine may decide otherwise.
    lifecycle.advance(store, hand.run)
    store.control.redis.hset(keyspace.run(hand.run), "state", "cancelled")
    runs.start_run(store, "by-hand", changed, 1)
    assert eligibility.not_admitted(store, hand.state, changed, ["a", "c"]) == {}


# The commands


def command(store: Store, *arguments: str) -> Result:
    environment = {
        "FLQ_REDIS_URL": store.servers.url,
        "FLQ_REDIS_BLOB_URL": store.servers.blob_url,
        "FLQ_STATE_DIR": str(store.state_dir),
    }
    return CliRunner().invoke(cli, list(arguments), env=environment)


def test_what_was_enrolled_before_there_was_a_key_goes_on_and_is_signed_when_asked(
    store: Store, tmp_path: Path
) -> None:
    secret, public = signing.new_key()
    store.control.enrolments.write(A, Enrolment(public, 5))
    store.control.enrolments.write("hospital-b", Enrolment(public, revoked_at=1.0))
    update = signing.seal(element(), A, secret)

    assert is_let_in(store, update)
    found = command(store, "doctor").output
    assert "enrolments are not checked" in found
    # A key alone would shut them out.
    more = command(store, "enroll", "hospital-c", "-o", str(tmp_path / "c.toml"), "--no-acl")
    assert isinstance(more.exception, ConfigError)
    assert "--sign-existing" in str(more.exception)
    assert operator_key.find(tmp_path) is None
    no = command(store, "enroll", "--sign-existing")
    assert no.exit_code == 1
    assert operator_key.find(tmp_path) is None

    done = command(store, "enroll", "--sign-existing", "--yes")
    assert done.exception is None, done.output
    assert operator_key.fingerprint(public) in done.output
    fresh = Store.open(store.servers.url, store.servers.blob_url, tmp_path)
    assert is_let_in(fresh, update)
    assert fresh.control.enrolments.revoked([A, "hospital-b"]) == {"hospital-b"}
    assert enrolment.troubles(fresh) == {}
    store.control.enrolments.write(A, Enrolment(MINE[1]))
    assert not is_let_in(fresh, signing.seal(element(), A, MINE[0]))

    put_back = command(store, "enroll", "--sign-existing", "--yes")
    assert "is written back" in put_back.output
    assert enrolment.troubles(fresh) == {}
    fresh.close()


def test_a_machine_without_the_operators_key_neither_enrols_nor_revokes(
    store: Store, tmp_path: Path
) -> None:
    enrolled(store)
    elsewhere = Store.open(store.servers.url, store.servers.blob_url, tmp_path / "elsewhere")
    for arguments in (
        ("enroll", "hospital-b", "-o", str(tmp_path / "b.toml"), "--no-acl"),
        ("revoke", A, "--no-acl"),
    ):
        done = command(elsewhere, *arguments)
        assert isinstance(done.exception, ConfigError)
        assert "copy operator.key" in str(done.exception)
    assert operator_key.find(tmp_path / "elsewhere") is None
    assert enrolment.troubles(store) == {}
    elsewhere.close()


def test_a_damaged_pin_stops_and_is_reported(store: Store, tmp_path: Path) -> None:
    enrolled(store)
    (tmp_path / "enrolled" / f"{A}.json").write_text("{")

    with pytest.raises(ConfigError, match="is damaged"):
        store.control.enrolments.get(A)


@pytest.mark.parametrize("client", ["sim-1", "sim-042", "group-0"])
def test_names_of_simulations_are_not_enrolled(store: Store, client: str) -> None:
    with pytest.raises(ConfigError, match="a name of simulations"):
        enrolled(store, client)
