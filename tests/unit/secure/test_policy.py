"""A site's demands: a round as it should be passes, and each thing that is not ends in a sentence that names it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fl_queue.protocol.records import Purpose
from fl_queue.secure import graph, policy
from fl_queue.secure.policy import LEAST_COHORT, Demands, RoundPolicy
from fl_queue.secure.records import Confirmations, Roster, SignedRunKey, Survivor, Survivors
from tests.support.secure_cohort import BODY, TERMS, Cohort

COHORT = Cohort.of(10)
ROSTER = COHORT.roster()
SURVIVORS = COHORT.survivors(ROSTER)
OWN_RUN_KEY = COHORT.run_keys["c00"].key
OWN_MASK_KEY = COHORT.mask_key("c00")


def one(found: list[str], pattern: str) -> None:
    assert len(found) == 1, found
    assert re.search(pattern, found[0]), found


def test_a_round_as_it_should_be_has_no_failed_demand() -> None:
    made = COHORT.policy()

    assert made.of_cohort(COHORT.run_keys, OWN_RUN_KEY, 6) == []
    assert made.of_roster(ROSTER, OWN_MASK_KEY, ROSTER.digest) == []
    assert made.of_survivors(SURVIVORS, ROSTER, BODY, SURVIVORS.digest) == []
    assert made.of_confirmations(COHORT.confirmations(SURVIVORS), SURVIVORS, ROSTER) == []
    assert made.confirmations_needed == 7


def test_without_peers_the_keys_of_the_run_count() -> None:
    made = COHORT.policy(peers=None)

    assert made.of_cohort(COHORT.run_keys, OWN_RUN_KEY, 0) == []
    assert made.of_roster(ROSTER, OWN_MASK_KEY) == []


def test_a_run_without_signatures_has_none_to_check() -> None:
    """Only a curious operator is kept out: ``secure.confirm`` and enrolment are off."""
    unsigned = {id_: key._replace(signature=bytes(64)) for id_, key in COHORT.run_keys.items()}
    terms = replace(TERMS, confirm=False)
    made = RoundPolicy(Demands(client="c00"), terms, COHORT.view, signers=None)

    assert made.of_cohort(unsigned, OWN_RUN_KEY, 0) == []
    signed = RoundPolicy(Demands(client="c00"), terms, COHORT.view, signers={})
    assert len(signed.of_cohort(unsigned, OWN_RUN_KEY, 0)) == 10


# The cohort


def test_a_closed_round_is_over_for_ever() -> None:
    one(COHORT.policy().of_cohort(COHORT.run_keys, OWN_RUN_KEY, 7), "round 7 is over at this site")


@pytest.mark.parametrize("least", [3, 4])
def test_too_few_clients_are_refused_at_each_stage(least: int) -> None:
    small = Cohort.of(least - 1)
    made = small.policy(min_cohort=least)
    roster = small.roster()
    survivors = small.survivors(roster)

    assert any(
        f"the cohort has {least - 1} clients; this site takes part with {least}" in line
        for line in made.of_cohort(small.run_keys, small.run_keys["c00"].key, 0)
    )
    assert any("the roster has" in line for line in made.of_roster(roster, small.mask_key("c00")))
    one(made.of_survivors(survivors, roster, BODY), "the list of survivors has")


def test_no_operator_lowers_what_the_site_asks_for() -> None:
    view = replace(COHORT.view, min_cohort=1)

    assert COHORT.policy(view, min_cohort=1).least == LEAST_COHORT
    assert COHORT.policy(view, min_cohort=5).least == 5
    assert COHORT.policy(replace(view, min_cohort=6), min_cohort=5).least == 6


def test_a_client_that_is_no_peer_is_refused() -> None:
    peers = {client: key for client, key in COHORT.peers.items() if client not in ("c05", "c06")}
    found = COHORT.policy(peers=peers).of_cohort(COHORT.run_keys, OWN_RUN_KEY, 0)

    assert found[0] == "c05, c06 are not among this site's peers (--peers)"
    one(COHORT.policy(peers=peers).of_roster(ROSTER, OWN_MASK_KEY)[:1], "c05, c06 are not among")


def test_a_run_key_that_its_client_has_not_signed_is_refused() -> None:
    forged = SignedRunKey(COHORT.run_keys["c03"].key, bytes(64))

    one(
        COHORT.policy().of_cohort({**COHORT.run_keys, "c03": forged}, OWN_RUN_KEY, 0),
        r"the run key of c03 is not signed with its key \(--peers\)",
    )
    missing = {client: key for client, key in COHORT.run_keys.items() if client != "c03"}
    one(COHORT.policy().of_cohort(missing, OWN_RUN_KEY, 0), "no run key of c03")


def test_another_run_key_of_the_site_itself_is_refused() -> None:
    one(COHORT.policy().of_cohort(COHORT.run_keys, bytes(32), 0), "or another one than its own")


def test_two_clients_with_one_run_key_are_refused() -> None:
    keys = {**COHORT.view.run_keys, "c09": COHORT.view.run_keys["c08"]}
    view = replace(COHORT.view, run_keys=keys)
    found = COHORT.policy(view).of_cohort(COHORT.run_keys, OWN_RUN_KEY, 0)

    assert "c08 and c09 have the same run key" in found


@pytest.mark.parametrize("change", [{"threshold": 5}, {"degree": 8}, {"threshold": 11}])
def test_a_weaker_graph_than_the_cohort_needs_is_refused(change: dict[str, int]) -> None:
    view = replace(COHORT.view, **change)

    one(
        COHORT.policy(view).of_cohort(COHORT.run_keys, OWN_RUN_KEY, 0), "too few for a cohort of 10"
    )


def test_a_site_with_peers_demands_their_signatures() -> None:
    without = replace(TERMS, confirm=False)

    one(
        COHORT.policy(terms=without).of_cohort(COHORT.run_keys, OWN_RUN_KEY, 0),
        r"secure\.confirm is off",
    )
    free = COHORT.policy(terms=without, peers=None)
    assert free.of_cohort(COHORT.run_keys, OWN_RUN_KEY, 0) == []
    assert free.of_confirmations(Confirmations("", {}), SURVIVORS, ROSTER) == []


# The roster


def test_a_mask_key_signed_for_another_view_of_the_round_names_its_client() -> None:
    """A site that was shown another base model has signed another context."""
    other = replace(COHORT.view, fetched="9" * 64)
    parties = tuple(COHORT.party(id_, other if id_ == "c04" else None) for id_ in COHORT.clients)

    one(
        COHORT.policy().of_roster(Roster(COHORT.view.digest(), parties), OWN_MASK_KEY),
        r"c04 has not signed its mask key for this site's view of round 7 .* base model, config or cohort differs",
    )


def test_a_roster_of_another_context_is_refused() -> None:
    other = Roster(bytes(32), ROSTER.parties)

    one(
        COHORT.policy().of_roster(other, OWN_MASK_KEY),
        r"another view of round 7 \(context 00000000, here ",
    )


def test_another_roster_than_the_noted_one_is_refused() -> None:
    smaller = COHORT.roster(*COHORT.clients[:9])

    one(
        COHORT.policy().of_roster(smaller, OWN_MASK_KEY, ROSTER.digest),
        "than the one that this site has noted",
    )


def test_a_roster_too_small_to_unmask_is_refused() -> None:
    small = COHORT.roster("c00", "c01", "c02", "c03", "c04", "c05")

    one(COHORT.policy().of_roster(small, OWN_MASK_KEY), "has 6 clients, and 7 are needed to unmask")
    relaxed = COHORT.policy(terms=replace(TERMS, confirm=False), peers=None)
    assert relaxed.of_roster(small, OWN_MASK_KEY) == []


def test_a_stranger_or_another_key_in_the_roster_is_refused() -> None:
    bigger = Cohort.of(11)
    view = replace(
        bigger.view, run_keys={id_: bigger.view.run_keys[id_] for id_ in bigger.clients[:10]}
    )
    found = bigger.policy(view).of_roster(bigger.roster(), bigger.mask_key("c00"))
    assert any("c10 is in the roster, and not in the cohort" in line for line in found)

    one(COHORT.policy().of_roster(ROSTER, bytes(32)), "no mask key of this site, or another one")
    one(COHORT.policy().of_roster(ROSTER, None), "no mask key of this site, or another one")


def test_two_clients_with_one_mask_key_are_refused() -> None:
    parties = [*ROSTER.parties[:9], ROSTER.parties[8]._replace(client="c09")]
    found = COHORT.policy().of_roster(Roster(ROSTER.context, tuple(parties)), OWN_MASK_KEY)

    assert "c08 and c09 have the same mask key" in found


# The survivors


def test_a_second_list_of_survivors_is_refused() -> None:
    fewer = COHORT.survivors(ROSTER, *COHORT.clients[:8])

    assert COHORT.policy().of_survivors(fewer, ROSTER, BODY) == []
    one(
        COHORT.policy().of_survivors(fewer, ROSTER, BODY, SURVIVORS.digest),
        "answered for another list",
    )


def test_a_list_of_another_roster_or_view_is_refused() -> None:
    other = Survivors(SURVIVORS.context, "0" * 64, SURVIVORS.survivors)
    one(COHORT.policy().of_survivors(other, ROSTER, BODY), "of another roster than this site's")
    elsewhere = Survivors(bytes(32), SURVIVORS.roster, SURVIVORS.survivors)
    one(COHORT.policy().of_survivors(elsewhere, ROSTER, BODY), "another view of round 7")


def test_a_survivor_that_is_not_in_the_roster_is_refused() -> None:
    roster = COHORT.roster(*COHORT.clients[:9])
    listed = COHORT.survivors(roster, *COHORT.clients)

    one(
        COHORT.policy().of_survivors(listed, roster, BODY),
        "c09 is in the list of survivors, and not in the roster",
    )


def test_another_update_of_the_site_itself_is_refused() -> None:
    for own in ("6" * 64, ""):
        one(COHORT.policy().of_survivors(SURVIVORS, ROSTER, own), "not the one that it sent")
    without = COHORT.survivors(ROSTER, *COHORT.clients[1:])
    assert COHORT.policy().of_survivors(without, ROSTER, BODY) == []


def test_survivors_in_two_parts_of_the_ring_are_refused() -> None:
    """100 clients with 12 neighbours each: two runs of six that are gone cut the ring."""
    made = RING.policy(terms=replace(TERMS, max_corrupt=0.05, max_dropout=0.05), peers=None)
    ring = graph.ring_order(RING.clients, RING.view.digest())
    gone = {*ring[10:16], *ring[60:66]}
    roster = Roster(RING.view.digest(), ROSTER.parties[:0])
    # Only ids and connections are looked at here.
    roster = replace(
        roster, parties=tuple(ROSTER.parties[0]._replace(client=id_) for id_ in RING.clients)
    )
    listed = tuple(Survivor(id_, BODY, bytes(32)) for id_ in RING.clients if id_ not in gone)

    one(
        made.of_survivors(Survivors(roster.context, roster.digest, listed), roster, BODY),
        "the survivors are not one part of the graph",
    )


# The signatures


def test_fewer_signatures_than_two_thirds_of_the_cohort_are_too_few() -> None:
    made = COHORT.policy()
    six = COHORT.confirmations(SURVIVORS, *COHORT.clients[:6])

    one(made.of_confirmations(six, SURVIVORS, ROSTER), "6 signatures .* are good, and 7 are needed")
    seven = COHORT.confirmations(SURVIVORS, *COHORT.clients[:7])
    assert made.of_confirmations(seven, SURVIVORS, ROSTER) == []


def test_signatures_count_by_members_of_the_roster_over_this_list_only() -> None:
    made = COHORT.policy()
    good = COHORT.confirmations(SURVIVORS, *COHORT.clients[:7])
    forged = Confirmations(good.survivors, {**good.signatures, "c03": bytes(64)})
    one(made.of_confirmations(forged, SURVIVORS, ROSTER), "6 signatures")
    swapped = Confirmations(good.survivors, {**good.signatures, "c03": good.signatures["c04"]})
    one(made.of_confirmations(swapped, SURVIVORS, ROSTER), "6 signatures")

    other = COHORT.survivors(ROSTER, *COHORT.clients[:8])
    one(made.of_confirmations(COHORT.confirmations(other), SURVIVORS, ROSTER), "over another list")
    renamed = Confirmations(SURVIVORS.digest, COHORT.confirmations(other).signatures)
    one(made.of_confirmations(renamed, SURVIVORS, ROSTER), "0 signatures")

    smaller = COHORT.roster(*COHORT.clients[:7])
    among = COHORT.survivors(smaller)
    signed = COHORT.confirmations(among, *COHORT.clients[3:])
    one(made.of_confirmations(signed, among, smaller), "4 signatures")


# What leaves in clear


@pytest.mark.parametrize("purpose", [Purpose.train, Purpose.evaluate, Purpose.sums])
def test_a_plain_round_is_refused_by_its_purpose(purpose: Purpose) -> None:
    assert re.fullmatch(
        r"round 7 asks for .* in clear, and this site takes part in secure rounds only \(--require-secure\)",
        policy.against_plain_round(7, purpose),
    )


def test_version_zero_takes_nothing_of_a_sites_data() -> None:
    assert policy.against_plain_round(0, Purpose.initialise) == ""


RING = Cohort.of(100)
RING = Cohort(RING.signing_keys, RING.run_keys, replace(RING.view, degree=12, threshold=6))
