"""The file of parties: read back as written, and an entry that cannot be used names its client."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.errors import ConfigError
from fl_queue.protocol import parties, signing
from fl_queue.protocol.operator_key import fingerprint
from fl_queue.protocol.parties import Parties

KEYS = {client: signing.new_key()[1] for client in ("hospital-b", "hospital-a")}


def written(folder: Path, text: str) -> Path:
    path = folder / "parties.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = Parties(KEYS)
    path = written(tmp_path, made.to_toml())

    assert parties.read(path) == made
    assert fingerprint(KEYS["hospital-a"]) in path.read_text()


def test_comments_order_and_a_fingerprint_that_was_left_out_make_no_difference(
    tmp_path: Path,
) -> None:
    lines = [f'[{client}]\nkey = "{key}"  # by telephone\n' for client, key in sorted(KEYS.items())]

    assert parties.read(written(tmp_path, "\n".join(lines))).digest == Parties(KEYS).digest
    other = {**KEYS, "hospital-c": signing.new_key()[1]}
    assert Parties(other).digest != Parties(KEYS).digest


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[hospital-a", "is not valid TOML"),
        ("[hospital-a]\n", "hospital-a has no key"),
        ('[hospital-a]\nkey = "abc"\n', "hospital-a has no key"),
        ("hospital-a = 1\n", "hospital-a has no key"),
        ('["../x"]\nkey = "abc"\n', "is not a client id"),
        (
            f'[hospital-a]\nkey = "{KEYS["hospital-a"]}"\nfingerprint = "{"0" * 32}"\n',
            "the fingerprint of hospital-a is not that of its key",
        ),
    ],
)
def test_an_entry_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        parties.read(written(tmp_path, text))

    assert refused.value.field == "--peers"


def test_a_file_that_others_may_change_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, Parties(KEYS).to_toml())
    path.chmod(0o664)

    with pytest.raises(ConfigError, match="chmod go-w"):
        parties.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        parties.read(tmp_path / "none.toml")
