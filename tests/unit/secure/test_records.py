"""Records: one digest for each, and bytes from anywhere are one of them or a documented error."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from fl_queue.errors import MessageError
from fl_queue.secure import records
from fl_queue.secure.records import Confirmations, Inbox, Roster, SignedRunKey, Survivors
from tests.support.secure_records import (
    CONFIRMATIONS,
    KEY_INBOX,
    RECORDS,
    ROSTER,
    SELF_INBOX,
    SURVIVORS,
)
from tests.support.secure_vectors import MASK_KEYS


@pytest.mark.parametrize("made", RECORDS, ids=lambda made: type(made).__name__)
def test_a_record_is_the_same_after_its_bytes(made: Any) -> None:
    raw = made.to_bytes()

    assert type(made).from_bytes(raw, made.digest) == made
    assert made.digest == hashlib.sha256(raw).hexdigest()
    assert raw == json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":")).encode()


def test_the_bytes_of_records() -> None:
    assert ROSTER.to_bytes().startswith(b'{"context":"681b7ea1')
    rows = json.loads(SURVIVORS.to_bytes())["survivors"]
    assert rows == [["a", "5" * 64, "06" * 32], ["b", "5" * 64, "06" * 32]]
    assert [row[0] for row in json.loads(CONFIRMATIONS.to_bytes())["signatures"]] == ["a", "b"]
    assert [len(row) for row in json.loads(KEY_INBOX.to_bytes())["boxes"]] == [3]
    assert [len(row) for row in json.loads(SELF_INBOX.to_bytes())["boxes"]] == [4]


def test_what_records_are_asked_for() -> None:
    assert ROSTER.clients == ("a", "b", "c")
    assert ROSTER.mask_keys == MASK_KEYS
    assert SURVIVORS.clients == ("a", "b")
    assert SURVIVORS.of("c") is None
    assert SURVIVORS.of("b") == SURVIVORS.survivors[1]
    assert SELF_INBOX.of("b") == SELF_INBOX.parcels[0]
    assert SELF_INBOX.of("c") is None


def changed(made: Any, **members: Any) -> bytes:
    found = {**json.loads(made.to_bytes()), **members}
    kept = {name: value for name, value in found.items() if value is not None}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()


PARTIES = json.loads(ROSTER.to_bytes())["parties"]
BAD = [
    (Roster, b""),
    (Roster, b"[]"),
    (Roster, b"1"),
    (Roster, changed(ROSTER, parties=1)),
    (Roster, b"\xff\xfe"),
    (Roster, changed(ROSTER, context=None)),
    (Roster, changed(ROSTER, more=1)),
    (Roster, changed(ROSTER, context="0" * 63)),
    (Roster, changed(ROSTER, context="A" * 64)),
    (Roster, changed(ROSTER, context=1)),
    (Roster, changed(ROSTER, parties={})),
    (Roster, changed(ROSTER, parties=[1])),
    (Roster, changed(ROSTER, parties=PARTIES[::-1])),
    (Roster, changed(ROSTER, parties=[PARTIES[0]] * 2)),
    (Roster, changed(ROSTER, parties=[PARTIES[0][:2]])),
    (Roster, changed(ROSTER, parties=[["a/b", *PARTIES[0][1:]]])),
    (Roster, changed(ROSTER, parties=[["a", "0" * 62 + "zz", PARTIES[0][2]]])),
    (Roster, ROSTER.to_bytes().replace(b",", b", ")),
    (Roster, SURVIVORS.to_bytes()),
    (Survivors, changed(SURVIVORS, roster="1")),
    (Survivors, changed(SURVIVORS, survivors=[["a", "x", "06" * 32]])),
    (Confirmations, changed(CONFIRMATIONS, signatures=[["a", "00"]])),
    (Inbox, changed(KEY_INBOX, kind="none")),
    (Inbox, changed(KEY_INBOX, kind="self")),
    (Inbox, changed(SELF_INBOX, kind="key")),
    (Inbox, changed(KEY_INBOX, reader="")),
]


@pytest.mark.parametrize(("kind", "raw"), BAD, ids=range(len(BAD)))
def test_anything_else_is_a_documented_error(kind: Any, raw: bytes) -> None:
    with pytest.raises(MessageError):
        kind.from_bytes(raw)


def test_a_run_key_is_the_same_after_its_json() -> None:
    made = SignedRunKey(bytes([1] * 32), bytes([2] * 64))

    assert SignedRunKey.from_json(made.to_json()) == made
    assert made.to_json() == f'{{"key":"{"01" * 32}","signature":"{"02" * 64}"}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "[]",
        "{}",
        f'{{"key":"{"01" * 32}"}}',
        f'{{"key":"{"01" * 32}","signature":"{"02" * 63}"}}',
        f'{{"key":"{"AB" * 32}","signature":"{"02" * 64}"}}',
        f'{{"key":"{"zz" * 32}","signature":"{"02" * 64}"}}',
        f'{{"key":"{"01" * 32}","signature":"{"02" * 64}","more":1}}',
    ],
)
def test_what_is_no_run_key_is_a_documented_error(text: str) -> None:
    with pytest.raises(MessageError):
        SignedRunKey.from_json(text)


def test_bytes_under_another_name_and_too_many_are_refused() -> None:
    with pytest.raises(MessageError, match="another digest"):
        Roster.from_bytes(ROSTER.to_bytes(), SURVIVORS.digest)
    with pytest.raises(MessageError, match="more than"):
        Roster.from_bytes(bytes(records.MAX_BYTES + 1))
