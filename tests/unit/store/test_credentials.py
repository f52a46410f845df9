"""A credentials file is read back as it was written, by its owner only."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from fl_queue.errors import ConfigError
from fl_queue.protocol import signing
from fl_queue.store import credentials
from fl_queue.store.credentials import Credentials, Login

KEY, PUBLIC = signing.new_key()
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
FULL = Credentials(
    "hospital-a",
    KEY,
    "rediss://control:6379",
    "rediss://data:6379",
    {"own": Login("hospital-a", 'p"\\w\x7f'), "read": Login("hospital-a.read", "é\t")},
    {"ca": PEM, "certificate": PEM, "key": PEM},
    PUBLIC,
)


@pytest.mark.parametrize("written", [FULL, Credentials("evaluator", KEY, "redis://a", "redis://b")])
def test_a_file_is_read_back_as_it_was_written(written: Credentials, tmp_path: Path) -> None:
    path = tmp_path / "site.toml"

    credentials.write(path, written)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert credentials.read(path) == written


def test_certificates_are_lines_as_in_their_own_files() -> None:
    text = FULL.to_toml()

    assert f'ca = """\n{PEM}"""\n' in text
    assert text.startswith("# Credentials of hospital-a ")


def test_fields_without_a_value_are_left_out() -> None:
    text = Credentials("hospital-a", KEY, "redis://a", "redis://b").to_toml()

    assert list(tomllib.loads(text)) == ["client", "signing_key", "redis"]
    assert list(tomllib.loads(text)["redis"]) == ["url", "blob_url"]


def test_a_file_that_is_there_is_not_replaced_without_force(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    credentials.write(path, FULL)
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="--force"):
        credentials.write(path, FULL)

    assert path.read_bytes() == before
