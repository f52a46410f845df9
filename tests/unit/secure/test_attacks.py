"""
Attacks on a secure round, by an operator that shows each site what it likes: refused, and seen to succeed otherwise.

Each test first switches a defence off and reads one site's update; with the defence it gets nothing. The sites and the
operator are those of ``tests/support/secure_round.py``, with the code that real ones run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest

from fl_queue.errors import MessageError, RoundRefused
from fl_queue.protocol import crypto
from fl_queue.secure import boxes, masks, shamir
from fl_queue.secure.boxes import Box
from fl_queue.secure.context import RoundView
from fl_queue.secure.masks import Secrets
from fl_queue.secure.policy import Terms
from fl_queue.secure.records import Confirmations, Roster, Survivor, Survivors
from fl_queue.secure.ring import Words
from tests.support.secure_round import TERMS, Masked, Operator, Site

VICTIM = "c0"
WORDS = 4096


def update(seed: int, size: int = WORDS) -> Words:
    """A plain vector with values as weights of a model have them: small, of both signs."""
    draw = np.random.default_rng(seed)
    values = draw.normal(0, 2**20, size).astype(np.int64).view(np.uint64)
    return Words(values, np.array([seed + 1, 2], np.uint64))


def nothing(size: int = WORDS) -> Words:
    return Words(np.zeros(size, np.uint64), np.zeros(2, np.uint64))


def is_read(words: Words, secret: Words) -> bool:
    """Whether an operator has a vector as it was before it was masked."""
    return all(np.array_equal(got, known) for got, known in zip(words, secret, strict=True))


def correlation(words: Words, secret: Words) -> float:
    one, other = (np.asarray(part.values.view(np.int64), np.float64) for part in (words, secret))
    return abs(float(np.corrcoef(one, other)[0, 1]))


def cohort(size: int, checks: bool = True, pinned: bool = True, terms: Terms = TERMS) -> Operator:
    sites = [Site(f"c{index}", checks) for index in range(size)]
    peers = {site.client: site.public for site in sites}
    for site in sites:
        site.terms = terms
        if pinned:
            site.demands = replace(site.demands, peers=peers)
    return Operator.of(sites)


def masked(made: Operator, roster: Roster, **vectors: Words) -> None:
    for client in roster.clients:
        sent = vectors.get(client, update(int(client[1:])))
        made.updates[client] = made.sites[client].update(made.view, roster, sent)


def revealed(
    made: Operator,
    roster: Roster,
    survivors: Survivors,
    *asked: str,
    signed: Confirmations | None = None,
) -> Secrets:
    """The secrets of a list of survivors, which these sites are shown, and answer."""
    found = made.unmasking(roster, survivors)
    for client in asked:
        confirmations = signed or Confirmations(survivors.digest, {})
        shown = made.boxes_for(client, roster)
        body = made.sites[client].unmask(made.view, roster, survivors, confirmations, shown)
        found.take(client, body)
    return found.secrets()


@contextmanager
def without_context(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Masks and signatures that are bound to nothing: the defence of the context, switched off."""
    with patch.context() as off:
        off.setattr(RoundView, "digest", lambda view: bytes(32))
        yield


# 1 and 2: another model, config, scales for one site


@pytest.mark.parametrize(
    "lie",
    [
        {"fetched": "9" * 64},
        {"config": "9" * 64},
        {"layout": "9" * 64},
        {"bits": 32},
        {"base_version": 3},
    ],
)
def test_another_view_of_the_round_for_one_site(
    lie: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others are shown a model with which their updates are zero, so that the sum is the victim's update."""

    def attack(made: Operator) -> Words:
        for client, site in made.sites.items():
            seen = replace(made.view, **lie) if client == VICTIM else made.view
            made.keys[client] = site.keys(seen, made.run_keys)
        roster = made.roster()
        for client, site in made.sites.items():
            seen = replace(made.view, **lie) if client == VICTIM else made.view
            shown = Roster(seen.digest(), roster.parties)
            made.updates[client] = site.update(
                seen, shown, update(0) if client == VICTIM else nothing()
            )
        survivors = made.survivors(made.roster())
        signed = made.confirmed(roster, survivors)
        return made.unmask(
            revealed(made, roster, survivors, *made.sites, signed=signed), made.total(survivors)
        )

    with without_context(monkeypatch):
        assert is_read(attack(cohort(5)), update(0))
    with pytest.raises(RoundRefused, match="view of round 7"):
        attack(cohort(5))


def test_masks_of_two_views_do_not_cancel() -> None:
    """Sites that check nothing still have no common masks, so that not even the sum comes out."""
    made = cohort(4, checks=False)
    other = replace(made.view, fetched="9" * 64)
    for client, site in made.sites.items():
        made.keys[client] = site.keys(other if client == VICTIM else made.view, {})
    roster = made.roster()
    for client, site in made.sites.items():
        seen = other if client == VICTIM else made.view
        made.updates[client] = site.update(
            seen, roster, update(0) if client == VICTIM else nothing()
        )
    total = made.total(made.survivors(roster))
    selves = {id_: shamir.to_bytes(5) for id_ in made.sites}
    made.unmask(Secrets(selves, {}, roster.mask_keys), total)

    assert correlation(total, update(0)) < 0.05


# 3 and 4: cohorts that consist of the victim


def invented(made: Operator) -> Words:
    """All but the victim are the operator's own inventions, who send nothing and know their secrets."""
    made.take_keys(judged=False)
    roster = made.roster()
    masked(made, roster, **{client: nothing() for client in made.sites if client != VICTIM})
    survivors = made.survivors(roster)
    signed = made.confirmed(roster, survivors)
    return made.unmask(
        revealed(made, roster, survivors, *made.sites, signed=signed), made.total(survivors)
    )


def test_a_cohort_of_the_victim_and_two_invented_clients() -> None:
    made = cohort(3, pinned=False)
    assert is_read(invented(made), update(0))

    pinned = cohort(3)
    known = {VICTIM: pinned.sites[VICTIM].public, "hospital-b": pinned.sites[VICTIM].public}
    pinned.sites[VICTIM].demands = replace(pinned.sites[VICTIM].demands, peers=known)
    with pytest.raises(RoundRefused, match=r"c1, c2 are not among this site's peers \(--peers\)"):
        invented(pinned)


def test_a_client_that_was_not_enrolled_has_no_key_that_others_accept() -> None:
    made = cohort(3, pinned=False)
    victim = made.sites[VICTIM]
    victim.signers = {id_: key for id_, key in victim.signers.items() if id_ != "c2"}

    with pytest.raises(RoundRefused, match="the run key of c2 is not signed"):
        invented(made)


def test_two_clients_are_too_few_in_cohort_roster_and_survivors() -> None:
    for checks in (False, True):
        two = cohort(2, checks)
        if checks:
            with pytest.raises(RoundRefused, match="the cohort has 2 clients"):
                two.take_keys()
        made = cohort(4, checks)
        made.take_keys()
        small = made.roster("c0", "c1")
        if checks:
            with pytest.raises(RoundRefused, match="the roster has 2 clients"):
                masked(made, small)
        roster = made.roster()
        masked(made, roster, c0=update(0), c1=update(1))
        survivors = made.survivors(roster, "c0", "c1")
        if checks:
            with pytest.raises(RoundRefused, match="the list of survivors has 2 clients"):
                made.confirmed(roster, survivors)
        else:
            secrets = revealed(made, roster, survivors, *made.sites)
            pair = made.unmask(secrets, made.total(survivors))
            # c1, or who colludes with it, takes its own update off.
            assert is_read(Words(*(a - b for a, b in zip(pair, update(1), strict=True))), update(0))


# 5: several lists of survivors


def rotated(made: Operator) -> Words:
    """
    Each site is shown another list, in order by itself, in which the victim and two more survive.

    Of the victim's b every site reveals a share, and of the r of each other all but two: enough for both.
    """
    made.take_keys()
    roster = made.roster()
    masked(made, roster)
    others = [client for client in roster.clients if client != VICTIM]
    shares: dict[str, dict[int, int]] = {client: {} for client in roster.clients}
    for index, client in enumerate(others):
        survivors = made.survivors(
            roster, VICTIM, *(others[(index + i) % len(others)] for i in (0, 1))
        )
        signed = made.confirmed(roster, survivors, client)
        body = made.sites[client].unmask(
            made.view, roster, survivors, signed, made.boxes_for(client, roster)
        )
        for dealer, raw in zip(made.graph.holders(client), body.shares, strict=True):
            if dealer == VICTIM or dealer not in survivors.clients:
                shares[dealer][made.graph.number(client)] = shamir.from_bytes(raw)
    found = {
        client: shamir.to_bytes(shamir.rebuild(got, made.view.threshold))
        for client, got in shares.items()
    }
    dropped = {client: found[client] for client in others}
    secrets = Secrets({VICTIM: found[VICTIM]}, dropped, roster.mask_keys)
    return made.unmask(secrets, made.updates[VICTIM].words)


def test_lists_with_rotating_survivors() -> None:
    made = cohort(10, pinned=False, terms=replace(TERMS, confirm=False))
    for site in made.sites.values():
        site.terms = replace(TERMS, confirm=False)
    assert is_read(rotated(made), update(0))

    with pytest.raises(RoundRefused, match=r"1 signatures .* are good, and 7 are needed"):
        rotated(cohort(10))


def test_of_two_lists_at_most_one_is_signed_by_enough() -> None:
    made = cohort(10)
    made.take_keys()
    roster = made.roster()
    masked(made, roster)
    lists = [made.survivors(roster, *roster.clients[start : start + 9]) for start in (0, 1)]
    halves = [[f"c{index}" for index in range(10) if index % 2 == half] for half in (0, 1)]
    signed = [made.confirmed(roster, each, *half) for each, half in zip(lists, halves, strict=True)]

    for client in roster.clients:
        for survivors, confirmations in zip(lists, signed, strict=True):
            with pytest.raises(RoundRefused, match=r"signatures|answered for another list"):
                revealed(made, roster, survivors, client, signed=confirmations)


def test_two_rosters_that_share_a_third_of_the_cohort() -> None:
    """Eight of twelve each: with two thirds of the roster, both lists would have enough signatures."""
    made = cohort(12)
    made.take_keys()
    names = sorted(made.sites)

    for some in (names[:8], names[4:]):
        with pytest.raises(RoundRefused, match="the roster has 8 clients, and 9 are needed"):
            masked(made, made.roster(*some))


# 8, 9 and 10: a second list, an old round, a round that is opened again


def test_a_second_list_after_the_first_was_signed() -> None:
    """The victim survives in the one and has dropped out in the other: both of its secrets would be known."""
    for checks in (False, True):
        made = cohort(4, checks)
        made.take_keys()
        roster = made.roster()
        masked(made, roster)
        first, second = made.survivors(roster), made.survivors(roster, "c1", "c2", "c3")
        signed = made.confirmed(roster, first)
        b = revealed(made, roster, first, *made.sites, signed=signed).survivors[VICTIM]
        if checks:
            with pytest.raises(RoundRefused, match="answered for another list"):
                made.confirmed(roster, second)
            continue
        r = revealed(made, roster, second, *made.sites).dropped[VICTIM]
        mine = made.updates[VICTIM].words
        keys = {id_: key for id_, key in roster.mask_keys.items() if id_ != VICTIM}
        own = masks.masks_of(VICTIM, masks.mask_key(r, roster.context), b, keys, roster.context)
        masks.apply([mask.negated() for mask in own], *mine)
        assert is_read(mine, update(0))


# 11: a client that trains twice


def test_two_trainings_to_other_bits_never_share_all_masks() -> None:
    """The difference of the two bodies is uniform; with one b it would be the difference of the two updates."""
    made = cohort(4)
    made.take_keys()
    roster = made.roster()
    site, one, other = made.sites[VICTIM], update(0), update(99)

    def difference(first: Masked, second: Masked) -> Words:
        return Words(*(a - b for a, b in zip(first.words, second.words, strict=True)))

    true = Words(*(a - b for a, b in zip(one, other, strict=True)))
    same = [site.update(made.view, roster, each, secret=5) for each in (one, other)]
    assert is_read(difference(*same), true)

    fresh = difference(*(site.update(made.view, roster, each) for each in (one, other)))
    assert correlation(fresh, true) < 0.06
    counts = np.bincount(fresh.values.view(np.uint8), minlength=256)
    expected = fresh.values.nbytes / 256
    assert 155 < ((counts - expected) ** 2 / expected).sum() < 376


# 12: replayed and exchanged keys


def test_a_mask_key_of_another_round_or_client_is_refused() -> None:
    made = cohort(4)
    made.take_keys()
    last = replace(made.view, number=6)
    old = made.sites["c1"].member(last).keys((5, 6, 7), made.sites["c1"].sign)
    parties = list(made.roster().parties)
    replayed = [
        parties[0],
        parties[1]._replace(key=old.mask_key, signature=old.signature),
        *parties[2:],
    ]
    swapped = [parties[0], parties[1]._replace(key=parties[2].key), *parties[2:]]
    doubled = [parties[0], parties[2]._replace(client="c1"), *parties[2:]]

    for wrong in (replayed, swapped, doubled):
        roster = Roster(made.view.digest(), tuple(wrong))
        with pytest.raises(
            RoundRefused, match="c1 has not signed its mask key for this site's view"
        ):
            made.sites[VICTIM].update(made.view, roster, update(0))


# 16: all that an operator gets


def test_nothing_that_the_operator_gets_correlates_with_an_update() -> None:
    """Four sites; the last one is too late, so that its r is rebuilt, and then its update arrives."""
    made = cohort(4)
    made.take_keys()
    roster = made.roster()
    vectors = {client: update(int(client[1:]), 1 << 17) for client in made.sites}
    masked(made, roster, **vectors)
    survivors = made.survivors(roster, "c0", "c1", "c2")
    signed = made.confirmed(roster, survivors, *made.sites)
    secrets = revealed(made, roster, survivors, *made.sites, signed=signed)

    seen = {client: made.updates[client].words for client in made.sites}
    # With r of the late one all its pair masks come off; what is left is under its b.
    late = seen["c3"]
    key = masks.mask_key(secrets.dropped["c3"], roster.context)
    others = [id_ for id_ in roster.clients if id_ != "c3"]
    pairs = [
        masks.pair_mask(key, roster.mask_keys[id_], roster.context, "c3", id_) for id_ in others
    ]
    masks.apply([mask.negated() for mask in pairs], *late)
    # With b of the others their self masks come off, and what is left is under the pair masks.
    for client in survivors.clients:
        own = masks.self_mask(secrets.survivors[client], roster.context, client)
        masks.apply([own.negated()], *seen[client])
    for client, words in seen.items():
        assert correlation(words, vectors[client]) < 0.01


# 24: a roster of its own for the victim


def split(made: Operator) -> Words:
    """
    The victim is shown a roster of itself and two colluders, all others the whole one, with the victim as survivor.

    The honest rest opens its boxes of the victim's b, and the colluders know the victim's pair masks.
    """
    made.take_keys()
    whole = made.roster()
    colluders = [id_ for id_ in whole.clients if id_ != VICTIM][-2:]
    apart = made.roster(VICTIM, *colluders)
    victim, member = made.sites[VICTIM], made.sites[VICTIM].member(made.view)
    words = victim.update(made.view, apart, update(0), secret=77).words
    # Of those that the victim was not shown it has boxes from a dealing of the same b, as if it dealt to all.
    b = shamir.random_polynomial(77, made.view.threshold)
    committed = boxes.commitment(whole.context, VICTIM, shamir.to_bytes(77))
    shares: dict[int, int] = {}
    for reader in made.graph.neighbours(VICTIM):
        bound = boxes.bound_to_self(committed, apart.digest)
        sealed_as = Box(whole.context, "self", VICTIM, reader, bound)
        number = made.graph.number(reader)
        shared = crypto.exchange(victim.run_secret, made.view.run_keys[reader])
        sealed = sealed_as.seal(shared, shamir.to_bytes(shamir.share_of(b, number)))
        shown = apart if reader in colluders else whole
        opened_as = replace(sealed_as, bound=boxes.bound_to_self(committed, shown.digest))
        with suppress(MessageError):
            shares[number] = shamir.from_bytes(opened_as.open(shared, sealed))
    secret = shamir.to_bytes(shamir.rebuild(shares, made.view.threshold))
    pairs = {id_: whole.mask_keys[id_] for id_ in colluders}
    key = member.mask_key(
        victim.polynomial
    )  # Of it the colluders know what it shares with their keys.
    own = masks.masks_of(VICTIM, key, secret, pairs, whole.context)
    masks.apply([mask.negated() for mask in own], *words)
    return words


def test_a_roster_of_the_victim_and_two_colluders(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RoundRefused, match="the roster has 3 clients, and 7 are needed"):
        split(cohort(10))
    # A site that checks nothing has boxes that do not open under the roster that the others were shown.
    with pytest.raises(ValueError, match="2 shares, 6 are needed"):
        split(cohort(10, checks=False))
    with monkeypatch.context() as off:
        off.setattr(boxes, "bound_to_self", lambda commitment, roster: commitment)
        assert is_read(split(cohort(10, checks=False)), update(0))


# 25: a site that has lost its round file


def test_a_site_without_its_round_file_has_no_part_in_the_roster() -> None:
    made = cohort(4)
    made.take_keys()
    roster = made.roster()
    site = made.sites[VICTIM]
    before = made.keys[VICTIM]
    site.polynomial = shamir.random_polynomial(shamir.random_element(), made.view.threshold)

    with pytest.raises(RoundRefused, match="no mask key of this site, or another one than its own"):
        site.update(made.view, roster, update(0))
    # It deals another secret under another mask key: no box of the two is under one key.
    again = site.member(made.view).keys(site.polynomial, site.sign)
    assert again.mask_key != before.mask_key
    assert not set(again.dealt.boxes) & set(before.dealt.boxes)


# 6 and 7: lists that name clients wrongly


def test_a_list_with_an_update_that_the_victim_did_not_send() -> None:
    made = cohort(4)
    made.take_keys()
    roster = made.roster()
    masked(made, roster)
    good = made.survivors(roster)
    wrong = tuple(
        Survivor(one.client, "0" * 64, one.commitment) if one.client == VICTIM else one
        for one in good.survivors
    )

    with pytest.raises(RoundRefused, match="not the one that it sent"):
        made.sites[VICTIM].confirm(made.view, roster, replace(good, survivors=wrong))
