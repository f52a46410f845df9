"""A client's secrets on disk: made once, noted before they are used, and gone in an order that a kill cannot turn."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fl_queue.common import files
from fl_queue.errors import ConfigError, LocalStorageError, RoundRefused
from fl_queue.protocol import crypto
from fl_queue.secure import masks, shamir
from fl_queue.secure.vault import Vault

RUN = "demo-123456"
CONTEXT, OTHER = b"\x11" * 32, b"\x22" * 32
ROSTER, SURVIVORS = "a" * 64, "b" * 64


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    made = Vault(tmp_path, "hospital-a")
    made.begin(RUN)
    return made


def enter(vault: Vault, number: int = 1, context: bytes = CONTEXT, has_roster: bool = False):
    return vault.enter(RUN, number, context, 3, has_roster)


def rounds(vault: Vault) -> list[str]:
    return [path.name for path in sorted(vault.folder.glob("*.round"))]


def killed(at: str, number: int, act: Callable[[], object]) -> None:
    """Do something in a process that is killed when it calls a function of ``files`` or ``Path`` for that time."""
    pid = os.fork()
    if pid == 0:
        owner = Path if at == "unlink" else files
        really, left = getattr(owner, at), [number]

        def counted(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return really(*args, **options)

        setattr(owner, at, counted)
        try:
            act()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_files_are_private_and_on_disk_when_a_call_returns(tmp_path, monkeypatch):
    synced: list[str] = []
    really = files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(path.name), really(path)))
    vault = Vault(tmp_path, "hospital-a")
    vault.begin(RUN)
    enter(vault)
    assert stat.S_IMODE(vault.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in vault.folder.iterdir()} == {0o600}
    # Twice: a file, then its folder.
    assert [name.partition(".")[0] for name in synced] == [
        f"hospital-a_{RUN}", "secure", f"hospital-a_{RUN}_1", "secure",
    ]  # fmt: skip
    before = list(synced)
    vault.note_roster(RUN, 1, ROSTER)
    vault.note_share(RUN, 1, b"\1" * 32, b"\2" * 32)
    vault.note_reveal(RUN, 1, SURVIVORS)
    assert len(synced) == len(before) + 6


def test_a_run_key_is_made_once_and_its_peers_stay(vault):
    first = vault.begin(RUN)
    assert vault.run(RUN) == first == vault.begin(RUN)
    assert first.public == crypto.public_half(first.secret)
    assert vault.begin("demo-654321").secret != first.secret
    with pytest.raises(RoundRefused, match=r"peers .*were changed"):
        vault.begin(RUN, "c" * 64)


def test_no_secret_is_in_a_text(vault):
    own = enter(vault)
    vault.note_roster(RUN, 1, ROSTER)
    own = vault.note_share(RUN, 1, b"\1" * 32, b"\2" * 32)
    text = repr(own) + repr(vault.run(RUN))
    for secret in (*own.coefficients, "02" * 32, vault.run(RUN).key):
        assert secret not in text


def test_a_round_has_one_secret_for_one_context(vault):
    made = enter(vault)
    assert enter(vault) == made == vault.round(RUN, 1)
    assert len(made.polynomial) == 3
    secret = masks.mask_key(shamir.to_bytes(made.polynomial[0]), CONTEXT)
    assert bytes.fromhex(made.mask_key) == crypto.public_half(secret)
    assert enter(vault, 2).polynomial != made.polynomial
    with pytest.raises(RoundRefused, match="round 1 was changed"):
        enter(vault, context=OTHER)
    assert vault.round(RUN, 1) == made


def test_no_keys_are_made_for_a_round_that_has_a_roster(vault):
    with pytest.raises(RoundRefused, match="no keys of round 1"):
        enter(vault, has_roster=True)
    assert not vault.has_round(RUN, 1)
    made = enter(vault)
    assert enter(vault, has_roster=True) == made
    # Its file is lost afterwards: the client drops out, and reveals nothing.
    (vault.folder / rounds(vault)[0]).unlink()
    for note in (
        lambda: enter(vault, has_roster=True),
        lambda: vault.note_roster(RUN, 1, ROSTER),
        lambda: vault.note_share(RUN, 1, b"\1" * 32, b"\2" * 32),
        lambda: vault.note_reveal(RUN, 1, SURVIVORS),
    ):
        with pytest.raises(RoundRefused, match="no keys of round 1"):
            note()


def test_roster_and_survivors_are_noted_once_and_in_order(vault):
    enter(vault)
    for early in (
        lambda: vault.note_share(RUN, 1, b"\1" * 32, b"\2" * 32),
        lambda: vault.note_reveal(RUN, 1, SURVIVORS),
    ):
        with pytest.raises(RoundRefused, match="no roster"):
            early()
    assert vault.note_roster(RUN, 1, ROSTER) == vault.note_roster(RUN, 1, ROSTER)
    with pytest.raises(RoundRefused, match="another roster"):
        vault.note_roster(RUN, 1, SURVIVORS)
    vault.note_share(RUN, 1, b"\1" * 32, b"\2" * 32)
    # Masked again with another self secret: either update may be the one that counts.
    vault.note_share(RUN, 1, b"\3" * 32, b"\4" * 32)
    assert vault.note_reveal(RUN, 1, SURVIVORS) == vault.note_reveal(RUN, 1, SURVIVORS)
    with pytest.raises(RoundRefused, match="another list of survivors"):
        vault.note_reveal(RUN, 1, ROSTER)
    kept = Vault(vault.folder.parent, "hospital-a").round(RUN, 1)
    assert (kept.roster, kept.revealed) == (ROSTER, SURVIVORS)
    assert kept.own_shares == {b"\1" * 32: b"\2" * 32, b"\3" * 32: b"\4" * 32}


def test_of_two_lists_at_a_time_one_is_noted(vault):
    enter(vault)
    vault.note_roster(RUN, 1, ROSTER)
    noted: list[str] = []
    start = threading.Barrier(8)

    def reveal(digest: str) -> None:
        start.wait()
        try:
            noted.append(str(vault.note_reveal(RUN, 1, digest).revealed))
        except RoundRefused:
            noted.append("refused")

    threads = [threading.Thread(target=reveal, args=(f"{n:064x}",)) for n in range(1, 9)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert noted.count("refused") == 7
    assert vault.round(RUN, 1).revealed in noted


def test_nothing_is_answered_about_a_closed_round(vault):
    for number in (1, 2, 3):
        enter(vault, number)
    vault.close(RUN, 2)
    assert rounds(vault) == [f"hospital-a_{RUN}_3.round"]
    vault.close(RUN, 1)
    assert vault.run(RUN).closed == 2
    for number in (1, 2):
        with pytest.raises(RoundRefused, match=f"round {number} is over at this site"):
            enter(vault, number)
        with pytest.raises(RoundRefused, match="is over"):
            vault.note_reveal(RUN, number, SURVIVORS)
    assert enter(vault, 3)


def test_a_kill_before_files_go_leaves_a_round_closed(vault):
    enter(vault)
    vault.note_roster(RUN, 1, ROSTER)
    killed("unlink", 1, lambda: vault.close(RUN, 1))
    assert rounds(vault)
    assert vault.has_round(RUN, 1)
    with pytest.raises(RoundRefused, match="is over"):
        vault.note_reveal(RUN, 1, SURVIVORS)
    vault.sweep(lambda run, number: number == 1, lambda run: False)
    assert not rounds(vault)
    assert vault.run(RUN).closed == 1


def test_the_run_key_goes_first(vault):
    enter(vault)
    # It is gone from the disk, not from memory only, before another file is touched.
    killed("sync", 1, lambda: vault.end(RUN))
    assert vault.run(RUN) is None
    assert rounds(vault)
    with pytest.raises(RoundRefused, match="no run key"):
        vault.round(RUN, 1)
    assert vault.runs() == [RUN]
    vault.sweep(lambda run, number: False, lambda run: True)
    assert vault.runs() == []


def test_a_kill_while_a_file_is_written_leaves_the_old_one_and_no_secret(vault):
    made = enter(vault)
    killed("put_in_place", 1, lambda: vault.note_roster(RUN, 1, ROSTER))
    assert list(vault.folder.glob("*.tmp"))
    assert vault.round(RUN, 1) == made
    vault.end(RUN)
    assert {path.suffix for path in vault.folder.iterdir()} == {".changed"}


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b"",
        lambda raw: raw[:-9],
        lambda raw: raw.replace(b'"context":"1', b'"context":"X'),
        lambda raw: raw.replace(b'"coefficients":["', b'"coefficients":["f'),
        lambda raw: b'{"coefficients":[],"context":"' + b"1" * 64 + b'","mask_key":"' + b"1" * 64 + b'"}',
    ],
)  # fmt: skip
def test_a_damaged_round_file_is_never_made_again(vault, change):
    secret = enter(vault).coefficients[0]
    path = vault.folder / rounds(vault)[0]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(LocalStorageError, match="is damaged") as refused:
        enter(vault)
    assert secret[:16] not in str(refused.value)
    assert refused.value.__cause__ is None
    assert vault.has_round(RUN, 1)
    vault.sweep(lambda run, number: True, lambda run: False)
    assert not vault.has_round(RUN, 1)


def test_a_damaged_run_file_answers_nothing_and_goes_with_its_run(vault):
    enter(vault)
    vault.begin("demo-654321")
    (vault.folder / f"hospital-a_{RUN}.run").write_bytes(b"{}")
    for ask in (lambda: vault.begin(RUN), lambda: vault.round(RUN, 1)):
        with pytest.raises(LocalStorageError, match="is damaged"):
            ask()
    vault.sweep(lambda run, number: True, lambda run: run != RUN)
    assert vault.runs() == [RUN]
    vault.sweep(lambda run, number: True, lambda run: True)
    assert vault.runs() == []


def test_one_worker_serves_a_client_from_a_folder(tmp_path):
    vault, other = Vault(tmp_path, "hospital-a"), Vault(tmp_path, "hospital-b")
    refused = pytest.raises(ConfigError, match="another worker serves hospital-a")
    with vault.held(), other.held(), refused, vault.held():
        raise AssertionError
    with vault.held():
        pass


def test_clients_of_one_folder_have_files_of_their_own(tmp_path):
    short, long = Vault(tmp_path, "a"), Vault(tmp_path, "a-b")
    kept = long.begin(RUN)
    short.begin(RUN)
    short.end(RUN)
    assert long.run(RUN) == kept
    assert short.run(RUN) is None


def test_a_disk_that_takes_nothing_is_named(tmp_path):
    (tmp_path / "secure").write_text("no folder")
    with pytest.raises(LocalStorageError, match="cannot be written"):
        Vault(tmp_path, "hospital-a").begin(RUN)
