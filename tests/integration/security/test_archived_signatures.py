"""Who has signed an update is known for as long as it is kept: receipts, history, the archive, and `verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.common.safe_json import dumps
from fl_queue.coordinator.operations import enrolment, verification
from fl_queue.coordinator.operations.enrolment import RedisEndpoints
from fl_queue.coordinator.operations.verification import Verdict
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import RunFailed
from fl_queue.models import update_archive
from fl_queue.models.update_archive import Proof
from fl_queue.protocol import message, operator_key, signing, tensor_layout
from fl_queue.protocol.records import Enrolment, RoundRecord
from fl_queue.reporting import run_status
from fl_queue.store import Store, keyspace
from tests.support.manual_run import ManualRun

CLIENTS = ("a", "b")
CONFIG = (
    "model.keep_updates=true",
    "security.require_enrolment=true",
    "redis.inline_bytes=4096",
    "redis.chunk_bytes=65536",
)
#: Parameters of a model whose updates travel in three chunks.
CHUNKED, INLINE = 40_000, 40
MINE = signing.new_key()


def enrolled(store: Store, client: str) -> str:
    """A client that is enrolled from this machine; its secret key."""
    place = RedisEndpoints(store.servers.url, store.servers.blob_url)
    return enrolment.enroll(store, client, place, 600, use_acl=False).credentials.signing_key


@pytest.fixture
def hand(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> ManualRun:
    """Round 1 is committed, of two signed updates of enrolled clients."""
    keys = {client: enrolled(store, client) for client in CLIENTS}
    size = getattr(request, "param", INLINE)
    return committed(ManualRun(store, tmp_path, CLIENTS, size, *CONFIG, keys=keys))


def committed(made: ManualRun) -> ManualRun:
    for client in CLIENTS:
        made.update(client)
    made.work()
    assert made.state.version == 1
    return made


def fingerprint(hand: ManualRun, client: str) -> str:
    return operator_key.fingerprint(signing.public_half(hand.keys[client]))


def verified(hand: ManualRun) -> Verdict:
    (verdict,) = verification.verify(hand.store, hand.state, hand.folder, 1)
    return verdict


def file_of(hand: ManualRun, client: str = "a") -> Path:
    (found,) = (hand.folder / "updates" / hand.run / "1").glob(f"{client}_*")
    return found


def rewrite(hand: ManualRun, **changes: Any) -> None:
    """Change round 1's record in Redis, as an attacker would."""
    key = keyspace.history(hand.run)
    raw = json.loads(hand.store.control.redis.lindex(key, 0))
    hand.store.control.redis.lset(key, 0, dumps({**raw, **changes}))


@pytest.mark.parametrize("hand", [INLINE, CHUNKED], indirect=True, ids=["inline", "chunked"])
def test_receipts_and_history_name_the_key_and_the_archive_proves_it(hand: ManualRun) -> None:
    keys = {client: fingerprint(hand, client) for client in CLIENTS}
    receipts = hand.store.control.receipts.of_round(hand.run, 1)
    assert {client: receipts[client].key for client in CLIENTS} == keys
    assert hand.record.keys == keys
    hand.store.control.redis.delete(keyspace.round_updates(hand.run, 1))
    assert run_status.receipts(hand.store, hand.state, 1, "a")["a"]["key"] == keys["a"]
    for client in CLIENTS:
        found = update_archive.read(hand.folder, hand.run, 1, client, hand.record.accepted[client])
        assert found.proof is not None
        assert signing.is_signed_by(found.proof.sealed, found.proof.enrolment.key)
        assert bool(found.header.chunk_bytes) == (hand.size == CHUNKED)

    verdict = verified(hand)
    assert (verdict.result, verdict.signed, verdict.forged) == ("same", list(CLIENTS), {})
    assert verdict.signatures == "2 signatures hold"


def test_refused_and_late_updates_name_the_key_that_signed_them(hand: ManualRun) -> None:
    body = hand.body("a")
    late = replace(hand.header("update", "a", body), round=1, token="late")
    failed = replace(hand.header("failure", "b", b""), tensors=(), body_bytes=0, reason="cannot")
    failed = replace(failed, body_digest=tensor_layout.body_digest(b""))
    intake = hand.intake()
    hand.store.control.redis.hdel(keyspace.round_updates(hand.run, 1), "a")
    for client, header, content in (("a", late, body), ("b", failed, b"")):
        element = message.pack(header, content or None)
        hand.store.data.results.push(hand.run, hand.seal(client, element))
    hand.take(intake, 2)

    assert hand.store.control.receipts.of_round(hand.run, 1)["a"].status == "late"
    assert hand.store.control.receipts.of_round(hand.run, 1)["a"].key == fingerprint(hand, "a")
    receipt = hand.store.control.receipts.of_round(hand.run, 2)["b"]
    assert (receipt.status, receipt.key) == ("failed", fingerprint(hand, "b"))


# The contents of a kept update are exchanged, and history and digest with them


def exchanged(hand: ManualRun, seal: Callable[[bytes], tuple[bytes, Proof | None]]) -> None:
    """Exchange a's update for another one, and the history so that it makes the version it names."""
    old = file_of(hand)
    header, _, _ = update_archive.read(hand.folder, hand.run, 1, "a", hand.record.accepted["a"])
    body = hand.body("a")[:-4] + b"\0\0\0\x3f"
    new = replace(header, body_digest=tensor_layout.body_digest(body), chunk_bytes=0)
    _, proof = seal(message.pack(new, body))
    old.unlink()
    update_archive.write(hand.folder, new, body, 1, proof)
    rewrite(hand, accepted={**hand.record.accepted, "a": new.body_digest})
    rewrite(hand, digest=verified(hand).recomputed)


def with_old_signature(hand: ManualRun) -> None:
    """The header is another one, and the signature the old one."""
    digest = hand.record.accepted["a"]
    proof = update_archive.read(hand.folder, hand.run, 1, "a", digest).proof
    assert proof is not None
    sealed, known = proof

    def seal(element: bytes) -> tuple[bytes, Proof]:
        return element, Proof(sealed._replace(element=memoryview(element)), known)

    exchanged(hand, seal)


def sealed_with(secret: str, signer: str, element: bytes) -> signing.SignedMessage:
    found = signing.opened(signing.seal(element, signer, secret))
    assert found is not None
    return found


def with_my_key(hand: ManualRun) -> None:
    exchanged(hand, lambda it: (it, Proof(sealed_with(MINE[0], "a", it), Enrolment(MINE[1]))))


def with_my_key_and_history(hand: ManualRun) -> None:
    """The same, and the history names my key; the enrolment looks as if the operator had signed it."""
    known = hand.store.control.enrolments.get("a")
    assert known is not None
    mine = replace(known, key=MINE[1])
    rewrite(hand, keys={**hand.record.keys, "a": operator_key.fingerprint(MINE[1])})
    exchanged(hand, lambda it: (it, Proof(sealed_with(MINE[0], "a", it), mine)))


def with_the_key_of_b(hand: ManualRun) -> None:
    known = hand.store.control.enrolments.get("b")
    assert known is not None
    rewrite(hand, keys={**hand.record.keys, "a": fingerprint(hand, "b")})
    exchanged(hand, lambda it: (it, Proof(sealed_with(hand.keys["b"], "b", it), known)))


def without(hand: ManualRun) -> None:
    exchanged(hand, lambda it: (it, None))


FORGERIES: dict[str, tuple[Callable[[ManualRun], None], str]] = {
    "old signature": (with_old_signature, "it is not signed with key"),
    "my key": (with_my_key, "is in the history"),
    "my key, in the history too": (with_my_key_and_history, "the operator has not enrolled it"),
    "the key of b": (with_the_key_of_b, "it is not signed with key"),
    "no signature": (without, "its signature is gone; it was signed with key"),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_verify_names_the_client_whose_signature_does_not_hold(hand: ManualRun, kind: str) -> None:
    attack, why = FORGERIES[kind]
    attack(hand)

    verdict = verified(hand)

    # The digests are right: the signature alone shows it.
    assert verdict.recomputed == verdict.digest
    assert (verdict.result, list(verdict.forged), list(verdict.signed)) == ("forged", ["a"], ["b"])
    assert why in verdict.forged["a"]
    assert verdict.reason == f"a: {verdict.forged['a']}"


def test_the_command_names_the_client_and_ends_with_4(hand: ManualRun) -> None:
    url, blob_url = hand.store.servers.url, hand.store.servers.blob_url
    line = ["verify", hand.state.name, "1", "--state-dir", str(hand.folder)]
    line += ["--redis-url", url, "--blob-url", blob_url]
    good = CliRunner().invoke(cli, line)
    assert (good.exception, "same, 2 signatures hold" in good.stdout) == (None, True)
    without(hand)
    bad = CliRunner().invoke(cli, line)
    assert isinstance(bad.exception, RunFailed)
    assert "forged" in bad.stdout
    assert "a: its signature is gone" in bad.stdout
    assert "signatures are wrong in rounds 1" in str(bad.exception)


# What has to go on as it did


def test_the_signature_of_a_client_that_was_enrolled_anew_or_revoked_still_holds(
    hand: ManualRun,
) -> None:
    enrolled(hand.store, "a")
    enrolment.revoke(hand.store, "b", use_acl=False)
    assert (verified(hand).result, verified(hand).signed) == ("same", list(CLIENTS))


def test_an_archive_of_an_earlier_release_is_verified_and_reported_without_signatures(
    hand: ManualRun,
) -> None:
    for client in CLIENTS:
        header, body, _ = update_archive.read(
            hand.folder, hand.run, 1, client, hand.record.accepted[client]
        )
        update_archive.write(hand.folder, replace(header, chunk_bytes=0), body, 1)
    raw = json.loads(hand.store.control.redis.lindex(keyspace.history(hand.run), 0))
    del raw["keys"]
    hand.store.control.redis.lset(keyspace.history(hand.run), 0, dumps(raw))
    assert RoundRecord.from_json(dumps(raw)).keys == {}

    verdict = verified(hand)
    assert (verdict.result, verdict.unsigned, verdict.signed) == ("same", list(CLIENTS), [])
    assert verdict.signatures == "2 updates were kept without a signature"


def test_a_federation_without_an_operator_s_key(store: Store, tmp_path: Path) -> None:
    """Enrolled before there was one: a key that has been exchanged since proves nothing any more."""
    made = {client: signing.new_key() for client in CLIENTS}
    for client, (_, public) in made.items():
        store.control.enrolments.write(client, Enrolment(public))
    keys = {client: secret for client, (secret, _) in made.items()}
    hand = committed(ManualRun(store, tmp_path, CLIENTS, INLINE, *CONFIG, keys=keys))
    assert (verified(hand).result, verified(hand).signed) == ("same", list(CLIENTS))

    store.control.enrolments.write("a", Enrolment(signing.new_key()[1]))
    verdict = verified(hand)
    assert (verdict.result, verdict.signed, list(verdict.unproven)) == ("same", ["b"], ["a"])


def test_a_plain_federation_is_verified_as_ever(store: Store, tmp_path: Path) -> None:
    hand = committed(ManualRun(store, tmp_path, CLIENTS, INLINE, "model.keep_updates=true"))
    assert hand.record.keys == {}
    assert file_of(hand).read_bytes().startswith(message.MAGIC)
    verdict = verified(hand)
    assert (verdict.result, verdict.unsigned) == ("same", list(CLIENTS))
    assert runs.find_run(store, hand.state.name).active
