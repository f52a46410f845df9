"""Rounds of sites that keep everything on disk: the sum comes out wherever one is killed, and no site gives two answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_queue.common import files
from fl_queue.errors import LocalStorageError, RoundRefused
from fl_queue.protocol import tensor_layout
from fl_queue.secure import shamir
from fl_queue.secure.bodies import KeysBody, UnmaskBody
from fl_queue.secure.boxes import Kind
from fl_queue.secure.context import RoundView, run_key_statement
from fl_queue.secure.policy import RoundPolicy
from fl_queue.secure.records import Confirmations, Inbox, Roster, SignedRunKey, Survivors
from fl_queue.secure.ring import Words
from fl_queue.secure.site_part import SitePart
from fl_queue.secure.vault import Vault
from tests.support.secure_round import RUN, TERMS, Masked, Operator, Site

CLIENTS = ("a", "b", "c", "d")
VICTIM = "a"


class KeptSite(Site):
    """A site whose every answer is made from its disk alone, as by a process that has just begun."""

    def __init__(self, client: str, state: Path) -> None:
        super().__init__(client)
        self.vault, self.has_roster = Vault(state, client), False
        key = self.vault.begin(RUN).public
        self.run_key = SignedRunKey(key, self.sign(run_key_statement(RUN, client, key)))

    def part(self, view: RoundView) -> SitePart:
        policy = RoundPolicy(self.demands, TERMS, view, self.signers)
        return SitePart(Vault(self.vault.folder.parent, self.client), policy, self.sign)

    def keys(self, view: RoundView, run_keys: Mapping[str, SignedRunKey]) -> KeysBody:
        return self.part(view).keys(run_keys, self.has_roster)

    def update(
        self, view: RoundView, roster: Roster, sent: Words, secret: int | None = None
    ) -> Masked:
        words = Words(*(part.copy() for part in sent))
        trailer = self.part(view).mask(roster, words)
        whole = b"".join(part.tobytes() for part in words) + trailer.to_bytes()
        self.body = tensor_layout.body_digest(whole)
        return Masked(words, trailer, self.body)

    def confirm(self, view: RoundView, roster: Roster, survivors: Survivors) -> bytes:
        return self.part(view).confirm(roster, survivors, self.body).signature

    def unmask(
        self,
        view: RoundView,
        roster: Roster,
        survivors: Survivors,
        confirmations: Confirmations,
        boxes: Mapping[Kind, Inbox],
    ) -> UnmaskBody:
        return self.part(view).reveal(roster, survivors, self.body, confirmations, boxes)


@pytest.fixture
def made(tmp_path: Path) -> Operator:
    found = Operator.of(KeptSite(client, tmp_path / client) for client in CLIENTS)
    found.take_keys()
    return found


def vector(client: str) -> Words:
    draw = np.random.default_rng(ord(client))
    return Words(draw.integers(0, 2**64, 50, np.uint64), draw.integers(0, 2**64, 3, np.uint64))


def updated(made: Operator, *clients: str) -> Roster:
    roster = made.roster()
    for client in clients or CLIENTS:
        made.updates[client] = made.sites[client].update(made.view, roster, vector(client))
    return roster


def finish(made: Operator, roster: Roster, *answers: str) -> None:
    """End a round, and look whether the sum is that of the clients that sent an update."""
    survivors = made.survivors(roster)
    signed = made.confirmed(roster, survivors, *answers)
    found = made.unmasking(roster, survivors)
    for client in answers or CLIENTS:
        boxes = made.boxes_for(client, roster)
        body = made.sites[client].unmask(made.view, roster, survivors, signed, boxes)
        found.take(client, body)
    assert found.is_complete
    assert not found.liars
    total = made.unmask(found.secrets(), made.total(survivors))
    for part, of_each in zip(total, zip(*map(vector, made.updates), strict=True), strict=True):
        assert np.array_equal(part, np.sum(of_each, axis=0, dtype=np.uint64))


def killed_at_sync(number: int, act: Callable[[], object]) -> bool:
    """Whether a process that does something was killed, as it was to be at its call of ``files.sync`` of that number."""
    pid = os.fork()
    if pid == 0:
        really, left = files.sync, [number]

        def counted(path: Path) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            really(path)

        files.sync = counted
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("updates", "answers"),
    [("abcd", "abcd"), ("abcd", "bcd"), ("bcd", "abcd"), ("bcd", "abc"), ("abd", "abd")],
)
def test_the_sum_comes_out_of_what_is_on_disk(made: Operator, updates: str, answers: str) -> None:
    finish(made, updated(made, *updates), *answers)


def test_a_site_that_is_killed_at_each_write_ends_its_round(tmp_path: Path) -> None:
    """Before and after each of the files gets its name: round file, roster, own share, survivors."""
    made = Operator.of(KeptSite(client, tmp_path / client) for client in CLIENTS)
    site = made.sites[VICTIM]
    for number in (1, 2):
        assert killed_at_sync(number, lambda: site.keys(made.view, made.run_keys))
    made.take_keys()
    roster = made.roster()
    # Once the roster is noted, masking writes the own share only.
    for number in (1, 2, 1, 2):
        assert killed_at_sync(number, lambda: site.update(made.view, roster, vector(VICTIM)))
    updated(made)
    survivors = made.survivors(roster)
    for number in (1, 2):
        assert killed_at_sync(number, lambda: site.confirm(made.view, roster, survivors))
    finish(made, roster)
    assert len(site.vault.round(RUN, 7).shares) > 1


def test_keys_and_signatures_are_the_same_when_made_again(made: Operator) -> None:
    site = made.sites[VICTIM]
    assert site.keys(made.view, made.run_keys).to_bytes() == made.keys[VICTIM].to_bytes()
    roster = updated(made)
    survivors = made.survivors(roster)
    first = site.confirm(made.view, roster, survivors)
    assert site.confirm(made.view, roster, survivors) == first


def test_a_vector_that_is_masked_again_has_other_masks(made: Operator) -> None:
    roster = updated(made)
    first = made.updates[VICTIM]
    second = made.sites[VICTIM].update(made.view, roster, vector(VICTIM))
    assert not np.any(first.words.values == second.words.values)
    assert first.trailer.commitment != second.trailer.commitment
    made.updates[VICTIM] = second
    finish(made, roster)


def test_a_site_that_has_lost_its_round_file_drops_out(made: Operator) -> None:
    roster = updated(made, "b", "c", "d")
    site = made.sites[VICTIM]
    site.has_roster = True
    for path in site.vault.folder.glob("*.round"):
        path.unlink()
    for ask in (
        lambda: site.keys(made.view, made.run_keys),
        lambda: site.update(made.view, roster, vector(VICTIM)),
        lambda: site.confirm(made.view, roster, made.survivors(roster)),
    ):
        with pytest.raises(RoundRefused, match=r"no keys of round 7|no mask key of this site"):
            ask()
    finish(made, roster, "b", "c", "d")


def test_another_view_roster_or_list_is_refused_once_one_is_noted(made: Operator) -> None:
    site, other = made.sites[VICTIM], replace(made.view, fetched="9" * 64)
    with pytest.raises(RoundRefused, match="round 7 was changed"):
        site.keys(other, made.run_keys)
    with pytest.raises(RoundRefused, match="round 7 was changed"):
        site.update(other, made.roster(), vector(VICTIM))
    roster = updated(made)
    with pytest.raises(RoundRefused, match="another roster"):
        site.update(made.view, made.roster("a", "b", "c"), vector(VICTIM))
    site.confirm(made.view, roster, made.survivors(roster))
    fewer = made.survivors(roster, "a", "b", "c")
    with pytest.raises(RoundRefused, match="another list of survivors"):
        site.confirm(made.view, roster, fewer)
    finish(made, roster)


def test_nothing_is_revealed_without_the_others_signatures(made: Operator) -> None:
    roster = updated(made)
    survivors, site = made.survivors(roster), made.sites[VICTIM]
    signed = made.confirmed(roster, survivors, "a", "b")
    with pytest.raises(RoundRefused, match=r"2 signatures .* are good, and 3 are needed"):
        site.unmask(made.view, roster, survivors, signed, made.boxes_for(VICTIM, roster))


def test_demands_are_checked_before_anything_is_noted(made: Operator) -> None:
    site = made.sites[VICTIM]
    other = replace(made.view, number=8)
    with pytest.raises(RoundRefused, match="run key of b is not signed"):
        site.keys(other, {**made.run_keys, "b": made.run_keys["b"]._replace(signature=bytes(64))})
    assert not site.vault.has_round(RUN, 8)
    forged = made.roster()
    parties = (*forged.parties[:-1], forged.parties[-1]._replace(signature=bytes(64)))
    with pytest.raises(RoundRefused, match="d has not signed its mask key"):
        site.update(made.view, replace(forged, parties=parties), vector(VICTIM))
    assert site.vault.round(RUN, 7).roster == ""
    roster = updated(made)
    with pytest.raises(RoundRefused, match="the list of survivors has 2 clients"):
        site.confirm(made.view, roster, made.survivors(roster, "a", "b"))
    assert site.vault.round(RUN, 7).revealed == ""
    finish(made, roster)


def test_who_has_revealed_signs_no_other_list(made: Operator) -> None:
    roster = updated(made)
    survivors, site = made.survivors(roster), made.sites[VICTIM]
    signed = made.confirmed(roster, survivors, "b", "c", "d")
    site.unmask(made.view, roster, survivors, signed, made.boxes_for(VICTIM, roster))
    with pytest.raises(RoundRefused, match="another list of survivors"):
        site.confirm(made.view, roster, made.survivors(roster, "a", "b", "c"))


def test_nothing_is_answered_about_a_closed_round(made: Operator) -> None:
    roster = updated(made)
    survivors, site = made.survivors(roster), made.sites[VICTIM]
    site.vault.close(RUN, 7)
    for ask in (
        lambda: site.keys(made.view, made.run_keys),
        lambda: site.update(made.view, roster, vector(VICTIM)),
        lambda: site.confirm(made.view, roster, survivors),
    ):
        with pytest.raises(RoundRefused, match="is over at this site"):
            ask()


def test_a_self_secret_is_in_no_file(made: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    really = shamir.random_element
    monkeypatch.setattr(shamir, "random_element", lambda: drawn.append(really()) or drawn[-1])
    updated(made, VICTIM)
    written = b"".join(p.read_bytes() for p in made.sites[VICTIM].vault.folder.iterdir())
    assert drawn
    assert not [each for each in drawn if shamir.to_bytes(each).hex().encode() in written]


def test_a_disk_that_takes_nothing_lets_nothing_leave(
    made: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster = updated(made)

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "put_in_place", full)
    with pytest.raises(LocalStorageError, match="No space left"):
        made.sites[VICTIM].confirm(made.view, roster, made.survivors(roster))
