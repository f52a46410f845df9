"""The operator's key: made once, private, and a signature for one purpose is none for another."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from fl_queue import blob, operatorkey, signing
from fl_queue.errors import ConfigError
from fl_queue.header import Header

#: Of RFC 8032, test 1.
SECRET = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
PUBLIC = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="


def test_it_is_made_private_and_once(tmp_path: Path) -> None:
    path = tmp_path / "state" / operatorkey.FILE

    made = operatorkey.create(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [operatorkey.FILE]
    assert operatorkey.create(path) == operatorkey.load(path) == made
    assert made.secret not in repr(made)


def test_a_key_in_place_of_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / operatorkey.FILE).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ConfigError, match="cannot be read"):
        operatorkey.create(tmp_path / operatorkey.FILE)
    assert not (tmp_path / "elsewhere").exists()


def test_it_is_the_key_pair_of_the_standard(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"# ours\n{SECRET}\n")
    path.chmod(0o600)

    key = operatorkey.load(path)

    assert key.public == signing.public_half(SECRET) == PUBLIC
    assert key.fingerprint == "21fe31dfa154a261626bf854046fd227"


def test_a_signature_is_for_one_purpose_content_and_key(tmp_path: Path) -> None:
    key = operatorkey.create(tmp_path / "key")
    signature = key.sign("enrolment v1", b"content")

    assert operatorkey.verify(key.public, "enrolment v1", b"content", signature)
    assert key.sign("enrolment v1", b"content") == signature
    assert not operatorkey.verify(key.public, "enrolment v2", b"content", signature)
    assert not operatorkey.verify(key.public, "enrolment", b" v1\0content", signature)
    assert not operatorkey.verify(key.public, "enrolment v1", b"contents", signature)
    assert not operatorkey.verify(PUBLIC, "enrolment v1", b"content", signature)
    for bad in ("", "====", "ü", signature[:-4], "A" * 88):
        assert not operatorkey.verify(key.public, "enrolment v1", b"content", bad)
    assert not operatorkey.verify("no key", "enrolment v1", b"content", signature)


def test_what_the_operator_signs_is_no_update_of_a_client(tmp_path: Path) -> None:
    key = operatorkey.create(tmp_path / "key")
    element = blob.pack(Header(kind="failure", run="r", round=1, client="a", token="t"), None)
    sealed = signing.opened(signing.seal(element, "a", key.secret))
    assert sealed is not None
    assert signing.is_signed_by(sealed, key.public)

    for purpose in ("", "update v1", "fl-queue update v1"):
        for content in (element, b"a\0" + element, b"fl-queue update v1\0a\0" + element):
            signature = base64.b64decode(key.sign(purpose, content))
            assert not signing.is_signed_by(sealed._replace(signature=signature), key.public)
    with pytest.raises(ValueError, match="zero byte"):
        key.sign("update\0", b"")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_one_that_others_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    operatorkey.create(path)
    path.chmod(mode)

    with pytest.raises(ConfigError, match="chmod 600"):
        operatorkey.find(tmp_path, path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "abc\n", f"{SECRET}\n{SECRET}\n"])
def test_a_file_without_a_key_is_never_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / operatorkey.FILE
    path.write_text(text)
    path.chmod(0o600)

    for use in (operatorkey.load, operatorkey.create):
        with pytest.raises(ConfigError, match="holds no operator's key"):
            use(path)
    assert path.read_text() == text


def test_where_it_is(tmp_path: Path) -> None:
    elsewhere = tmp_path / "vault" / "key"
    variable = {operatorkey.VARIABLE: str(elsewhere)}

    assert operatorkey.find(tmp_path, environ={}) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        operatorkey.find(tmp_path, environ=variable)
    made = operatorkey.create(operatorkey.place(tmp_path, environ=variable))
    assert operatorkey.find(tmp_path, environ=variable) == made
    assert operatorkey.find(tmp_path, elsewhere, environ={}) == made
    assert operatorkey.find(tmp_path, environ={}) is None
