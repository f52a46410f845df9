"""Whole rounds in memory: the sum comes out after drop-outs at each stage, and a lie about a share names its client."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fl_queue.errors import MessageError, RoundRefused
from fl_queue.secure import unmasking
from fl_queue.secure.bodies import NO_SHARE, Dealt, UnmaskBody
from fl_queue.secure.ring import Words
from tests.support.secure_round import Operator, Site

CLIENTS = ("a", "b", "c", "d", "e")


def vector(client: str) -> Words:
    draw = np.random.default_rng(ord(client))
    return Words(draw.integers(0, 2**64, 50, np.uint64), draw.integers(0, 2**64, 3, np.uint64))


def opened(*keys: str) -> Operator:
    made = Operator.of(Site(client) for client in CLIENTS)
    made.take_keys(*keys)
    return made


def finished(
    made: Operator, updates: tuple[str, ...], answers: tuple[str, ...]
) -> unmasking.Unmasking:
    """A round in which these send an update, and these answer."""
    roster = made.roster()
    for client in updates:
        made.updates[client] = made.sites[client].update(made.view, roster, vector(client))
    survivors = made.survivors(roster)
    signed = made.confirmed(roster, survivors, *answers)
    found = made.unmasking(roster, survivors)
    for client in answers:
        boxes = made.boxes_for(client, roster)
        body = made.sites[client].unmask(made.view, roster, survivors, signed, boxes)
        found.take(client, UnmaskBody.from_bytes(body.to_bytes(), found.secrets_of(client)))
    return found


@pytest.mark.parametrize(
    ("keys", "updates", "answers"),
    [
        ("abcde", "abcde", "abcde"),
        ("abcde", "abcde", "bcde"),
        ("abcde", "abce", "abcde"),
        ("abcde", "abc", "acde"),
        ("abce", "abce", "abce"),
        ("abce", "abc", "abce"),
    ],
)
def test_the_sum_comes_out_after_drop_outs_at_each_stage(
    keys: str, updates: str, answers: str
) -> None:
    made = opened(*keys)
    found = finished(made, tuple(updates), tuple(answers))

    assert found.is_complete
    assert found.shortage() == ""
    total = made.unmask(found.secrets(), made.total(found.survivors))
    for part, of_each in zip(total, zip(*map(vector, updates), strict=True), strict=True):
        assert np.array_equal(part, np.sum(of_each, axis=0, dtype=np.uint64))
    assert not found.liars


def test_a_box_that_did_not_come_is_no_share() -> None:
    made = opened()
    found = finished(made, CLIENTS, CLIENTS[:4])
    signed = made.confirmed(found.roster, found.survivors, *CLIENTS[:4])
    boxes = made.boxes_for("a", found.roster)
    fewer = replace(boxes["self"], parcels=boxes["self"].parcels[1:])
    member = made.sites["a"]

    body = member.unmask(made.view, found.roster, found.survivors, signed, {**boxes, "self": fewer})
    assert [share == NO_SHARE for share in body.shares] == [False, True, False, False, False]
    body = member.unmask(made.view, found.roster, found.survivors, signed, {"key": boxes["key"]})
    assert [share == NO_SHARE for share in body.shares] == [False, True, True, True, True]


def test_too_few_answers_are_named_with_those_who_are_silent() -> None:
    made = opened()
    roster = made.roster()
    for client in CLIENTS:
        made.updates[client] = made.sites[client].update(made.view, roster, vector(client))
    survivors = made.survivors(roster)
    signed = made.confirmed(roster, survivors)
    found = made.unmasking(roster, survivors)
    for client in "ac":
        boxes = made.boxes_for(client, roster)
        found.take(client, made.sites[client].unmask(made.view, roster, survivors, signed, boxes))

    assert not found.is_complete
    assert found.shortage() == "unmasking needs 3 answers for a, 2 came; b, d, e did not answer"


def test_the_first_answer_of_a_client_counts() -> None:
    made = opened()
    found = finished(made, CLIENTS, CLIENTS[:4])
    before = found.secrets()
    found.take("a", UnmaskBody((NO_SHARE,) * 5))

    assert found.secrets() == before
    assert not found.unusable


def test_another_share_than_was_dealt_names_its_holder_and_the_round_goes_on() -> None:
    made = opened()
    found = finished(made, ("a", "b", "c", "d"), ("a", "b", "c", "d"))
    other = made.unmasking(found.roster, found.survivors)
    for client in ("a", "b", "c", "d"):
        boxes = made.boxes_for(client, found.roster)
        signed = made.confirmed(found.roster, found.survivors)
        site = made.sites[client]
        shares = site.unmask(made.view, found.roster, found.survivors, signed, boxes).shares
        # d lies about the share of a, and has none of c.
        lie = (bytes(32), shares[1], NO_SHARE, *shares[3:]) if client == "d" else shares
        other.take(client, UnmaskBody(tuple(lie)))

    assert other.liars == {"d": "d revealed another share of a than it was dealt"}
    assert other.unusable == {("c", "d")}
    assert other.secrets() == found.secrets()


def dealt_wrongly(made: Operator, dealer: str, reader: int, with_its_hash: bool) -> None:
    """A dealer's box for one reader holds the share of another one; with or without the hash of that."""
    dealt = made.updates[dealer].trailer.dealt
    site, roster = made.sites[dealer], made.roster()
    other = site.update(made.view, roster, vector(dealer)).trailer.dealt
    boxes, hashes = [*dealt.boxes], [*dealt.hashes]
    boxes[reader] = other.boxes[reader]
    if with_its_hash:
        hashes[reader] = other.hashes[reader]
    trailer = replace(made.updates[dealer].trailer, dealt=Dealt(tuple(boxes), tuple(hashes)))
    made.updates[dealer] = replace(made.updates[dealer], trailer=trailer)


def test_a_box_that_does_not_open_blames_neither_of_the_two() -> None:
    made = opened()
    roster = made.roster()
    for client in CLIENTS:
        made.updates[client] = made.sites[client].update(made.view, roster, vector(client))
    kept = made.updates["a"]
    dealt_wrongly(made, "a", 1, with_its_hash=True)  # For c, sealed for another commitment.
    made.sites["a"].body = kept.digest
    survivors = made.survivors(roster)
    signed = made.confirmed(roster, survivors)
    found = made.unmasking(roster, survivors)
    for client in CLIENTS:
        boxes = made.boxes_for(client, roster)
        found.take(client, made.sites[client].unmask(made.view, roster, survivors, signed, boxes))

    assert found.unusable == {("a", "c")}
    assert found.liars == {}
    assert found.secrets().survivors.keys() == set(CLIENTS)


def inconsistent(made: Operator, dealer: str, wrong: int) -> unmasking.Unmasking:
    """Answers in which a dealer's own shares, hashes and all, are of two polynomials for some readers."""
    roster = made.roster()
    for client in CLIENTS:
        made.updates[client] = made.sites[client].update(made.view, roster, vector(client))
    survivors = made.survivors(roster)
    signed = made.confirmed(roster, survivors)
    found = made.unmasking(roster, survivors)
    dealing = found.dealings[dealer]
    hashes = list(dealing.dealt.hashes)
    for client in CLIENTS:
        boxes = made.boxes_for(client, roster)
        body = made.sites[client].unmask(made.view, roster, survivors, signed, boxes)
        shares = list(body.shares)
        if client in dealing.readers[:wrong]:
            place = CLIENTS.index(dealer)
            shares[place] = bytes([len(client), *bytes(31)])
            box = unmasking.Box(roster.context, "self", dealer, client, b"")
            hashes[dealing.readers.index(client)] = box.share_hash(shares[place])
            lied = replace(dealing, dealt=Dealt(dealing.dealt.boxes, tuple(hashes)))
            found.dealings = {**found.dealings, dealer: lied}
        found.take(client, UnmaskBody(tuple(shares)))
    return found


def test_a_dealer_of_one_wrong_share_is_named_and_the_round_goes_on() -> None:
    made = opened()
    found = inconsistent(made, "b", wrong=1)
    total = made.unmask(found.secrets(), made.total(found.survivors))

    expected = np.sum([vector(client).values for client in CLIENTS], axis=0, dtype=np.uint64)
    assert np.array_equal(total.values, expected)
    assert found.liars == {"b": "b dealt shares that do not give the secret it committed to"}


def test_a_dealer_of_more_wrong_shares_than_the_round_can_do_without_is_named_in_its_reason() -> (
    None
):
    made = opened()

    with pytest.raises(MessageError, match="b dealt shares that do not give the secret"):
        inconsistent(made, "b", wrong=4).secrets()


# Keys


def test_keys_of_another_view_name_both_contexts() -> None:
    made = opened()
    other = replace(made.view, fetched="9" * 64)
    member = made.sites["a"].member(other)
    keys = member.keys((5, 6, 7), made.sites["a"].sign)

    with pytest.raises(
        MessageError, match=r"what a signed is of another view of round 7 \(context .*, here"
    ):
        unmasking.check_keys(keys, "a", made.view.digest(), 7, made.sites["a"].public)


def test_keys_that_are_not_signed_or_of_low_order_are_refused() -> None:
    made = opened()
    good, site = made.keys["a"], made.sites["a"]
    context = made.view.digest()
    unmasking.check_keys(good, "a", context, 7, site.public)

    with pytest.raises(MessageError, match="the mask key of a is not signed with its key"):
        unmasking.check_keys(replace(good, signature=bytes(64)), "a", context, 7, site.public)
    with pytest.raises(MessageError, match="the mask key of b is not signed"):
        unmasking.check_keys(good, "b", context, 7, site.public)
    with pytest.raises(MessageError, match="bad key of a"):
        unmasking.check_keys(replace(good, mask_key=bytes(32)), "a", context, 7, "")


def test_no_client_is_in_the_inbox_of_one_that_is_no_neighbour() -> None:
    made = opened()
    found = unmasking.inboxes(made.view.digest(), "key", made.key_dealings(), ["a", "c"])

    assert [parcel.dealer for parcel in found["a"].parcels] == ["b", "c", "d", "e"]
    assert found.keys() == {"a", "c"}
    readers = unmasking.Dealing(("b",), Dealt((bytes(48),), (bytes(32),)))
    alone = unmasking.inboxes(bytes(32), "key", {"d": readers}, ["a", "b"])
    assert [len(inbox.parcels) for inbox in alone.values()] == [0, 1]
    assert readers.hash_for("a") is None


def test_a_site_reveals_nothing_without_the_signatures_of_the_others() -> None:
    made = opened()
    roster = made.roster()
    for client in CLIENTS:
        made.updates[client] = made.sites[client].update(made.view, roster, vector(client))
    survivors = made.survivors(roster)
    signed = made.confirmed(roster, survivors, "a", "b", "c")
    boxes = made.boxes_for("a", roster)

    with pytest.raises(RoundRefused, match=r"3 signatures .* 4 are needed"):
        made.sites["a"].unmask(made.view, roster, survivors, signed, boxes)
