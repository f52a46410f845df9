"""The operator's key: made once, private, and a signature for one purpose is none for another."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from fl_queue.errors import ConfigError
from fl_queue.protocol import message, operator_key, signing
from fl_queue.protocol.header import Header

#: Of RFC 8032, test 1.
SECRET = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
PUBLIC = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="


def test_it_is_made_private_and_once(tmp_path: Path) -> None:
    path = tmp_path / "state" / operator_key.FILE

    made = operator_key.create(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [operator_key.FILE]
    assert operator_key.create(path) == operator_key.load(path) == made
    assert made.secret not in repr(made)


def test_a_key_in_place_of_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / operator_key.FILE).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ConfigError, match="cannot be read"):
        operator_key.create(tmp_path / operator_key.FILE)
    assert not (tmp_path / "elsewhere").exists()


def test_it_is_the_key_pair_of_the_standard(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"# ours\n{SECRET}\n")
    path.chmod(0o600)

    key = operator_key.load(path)

    assert key.public == signing.public_half(SECRET) == PUBLIC
    assert key.fingerprint == "21fe31dfa154a261626bf854046fd227"


def test_a_signature_is_for_one_purpose_content_and_key(tmp_path: Path) -> None:
    key = operator_key.create(tmp_path / "key")
    signature = key.sign("enrolment v1", b"content")

    assert operator_key.verify(key.public, "enrolment v1", b"content", signature)
    assert key.sign("enrolment v1", b"content") == signature
    assert not operator_key.verify(key.public, "enrolment v2", b"content", signature)
    assert not operator_key.verify(key.public, "enrolment", b" v1\0content", signature)
    assert not operator_key.verify(key.public, "enrolment v1", b"contents", signature)
    assert not operator_key.verify(PUBLIC, "enrolment v1", b"content", signature)
    for bad in ("", "====", "ü", signature[:-4], "A" * 88):
        assert not operator_key.verify(key.public, "enrolment v1", b"content", bad)
    assert not operator_key.verify("no key", "enrolment v1", b"content", signature)


def test_what_the_operator_signs_is_no_update_of_a_client(tmp_path: Path) -> None:
    key = operator_key.create(tmp_path / "key")
    element = message.pack(Header(kind="failure", run="r", round=1, client="a", token="t"), None)
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
    operator_key.create(path)
    path.chmod(mode)

    with pytest.raises(ConfigError, match="chmod 600"):
        operator_key.find(tmp_path, path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "abc\n", f"{SECRET}\n{SECRET}\n"])
def test_a_file_without_a_key_is_never_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / operator_key.FILE
    path.write_text(text)
    path.chmod(0o600)

    for use in (operator_key.load, operator_key.create):
        with pytest.raises(ConfigError, match="holds no operator's key"):
            use(path)
    assert path.read_text() == text


def test_where_it_is(tmp_path: Path) -> None:
    elsewhere = tmp_path / "vault" / "key"
    variable = {operator_key.VARIABLE: str(elsewhere)}

    assert operator_key.find(tmp_path, environ={}) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        operator_key.find(tmp_path, environ=variable)
    made = operator_key.create(operator_key.place(tmp_path, environ=variable))
    assert operator_key.find(tmp_path, environ=variable) == made
    assert operator_key.find(tmp_path, elsewhere, environ={}) == made
    assert operator_key.find(tmp_path, environ={}) is None
