"""
A secure round in memory: sites that keep what a site keeps, and an operator that sees what an operator sees.

``checks=False`` switches a site's demands off, so that an attack can be seen to succeed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fl_queue.errors import RoundRefused
from fl_queue.protocol import crypto, signing, tensor_layout
from fl_queue.secure import masks, shamir
from fl_queue.secure.bodies import KeysBody, UnmaskBody, UpdateTrailer
from fl_queue.secure.boxes import Kind
from fl_queue.secure.context import RoundView, confirm_statement, run_key_statement
from fl_queue.secure.graph import shape
from fl_queue.secure.masks import Secrets
from fl_queue.secure.member import Member
from fl_queue.secure.policy import Demands, RoundPolicy, Terms
from fl_queue.secure.records import (
    Confirmations,
    Inbox,
    Party,
    Roster,
    SignedRunKey,
    Survivor,
    Survivors,
)
from fl_queue.secure.ring import Words
from fl_queue.secure.unmasking import Dealing, Unmasking, check_keys, inboxes

TERMS = Terms(confirm=True, max_corrupt=0.2, max_dropout=0.1)
RUN = "demo-3f2a9c"


@dataclass(frozen=True)
class Masked:
    """A masked update: its vector, its trailer, and the digest of its body."""

    words: Words
    trailer: UpdateTrailer
    digest: str


class Site:
    """One client. Args: ``checks``: whether it has any demands."""

    def __init__(self, client: str, checks: bool = True, **demands: Any) -> None:
        self.client, self.checks = client, checks
        self.demands = Demands(client=client, **demands)
        self.signing_key, self.public = signing.new_key()
        self.run_secret, run_key = crypto.new_exchange_key()
        self.run_key = SignedRunKey(run_key, self.sign(run_key_statement(RUN, client, run_key)))
        self.polynomial: tuple[int, ...] = ()
        self.own_shares: dict[bytes, bytes] = {}
        self.body = self.noted = self.revealed = ""
        self.terms = TERMS
        self.signers: dict[str, str] = {}

    def sign(self, content: bytes) -> bytes:
        return signing.raw_signature(self.signing_key, content)

    def _policy(self, view: RoundView) -> RoundPolicy:
        return RoundPolicy(self.demands, self.terms, view, self.signers or None)

    def _demand(self, failed: list[str]) -> None:
        if self.checks and failed:
            raise RoundRefused(failed[0])

    def member(self, view: RoundView) -> Member:
        return Member(self.client, self.run_secret, view)

    def keys(self, view: RoundView, run_keys: Mapping[str, SignedRunKey]) -> KeysBody:
        self._demand(self._policy(view).of_cohort(run_keys, self.run_key.key, 0))
        self.polynomial = shamir.random_polynomial(shamir.random_element(), view.threshold)
        made = self.member(view).keys(self.polynomial, self.sign)
        self.own_shares[made.mask_key] = self.member(view).own_share(self.polynomial)
        return made

    def update(
        self, view: RoundView, roster: Roster, sent: Words, secret: int | None = None
    ) -> Masked:
        """Args: ``secret``: b; drawn unless it is given."""
        member = self.member(view)
        own = crypto.public_half(member.mask_key(self.polynomial))
        self._demand(self._policy(view).of_roster(roster, own, self.noted))
        self.noted = roster.digest
        words = Words(*(part.copy() for part in sent))
        b = shamir.random_polynomial(
            shamir.random_element() if secret is None else secret, view.threshold
        )
        trailer = member.mask(words, self.polynomial, roster, b)
        self.own_shares[trailer.commitment] = member.own_share(b)
        whole = b"".join(part.tobytes() for part in words) + trailer.to_bytes()
        self.body = tensor_layout.body_digest(whole)
        return Masked(words, trailer, self.body)

    def confirm(self, view: RoundView, roster: Roster, survivors: Survivors) -> bytes:
        failed = self._policy(view).of_survivors(survivors, roster, self.body, self.revealed)
        self._demand(failed)
        self.revealed = survivors.digest
        return self.sign(confirm_statement(view.digest(), survivors.digest))

    def unmask(
        self,
        view: RoundView,
        roster: Roster,
        survivors: Survivors,
        confirmations: Confirmations,
        boxes: Mapping[Kind, Inbox],
    ) -> UnmaskBody:
        policy = self._policy(view)
        self._demand(policy.of_survivors(survivors, roster, self.body, self.revealed))
        self._demand(policy.of_confirmations(confirmations, survivors, roster))
        self.revealed = survivors.digest
        return self.member(view).shares(roster, survivors, boxes, self.own_shares)


@dataclass
class Operator:
    """
    The honest operator of one round; tests let it lie.

    Args:
        sites: The cohort.
        view: The round as it is.
    """

    sites: dict[str, Site]
    view: RoundView
    keys: dict[str, KeysBody] = field(default_factory=dict)
    updates: dict[str, Masked] = field(default_factory=dict)

    @classmethod
    def of(cls, sites: Iterable[Site], number: int = 7, **changes: Any) -> Operator:
        cohort = {site.client: site for site in sites}
        for site in cohort.values():
            site.signers = {id_: other.public for id_, other in cohort.items()}
        degree, threshold = shape(len(cohort), TERMS.max_corrupt, TERMS.max_dropout)
        view = RoundView(
            run=RUN, number=number, purpose="train", fetched="0" * 64, base_version=2, config="1" * 64,
            layout="2" * 64, bits=64, threshold=threshold, degree=degree, min_cohort=3,
            run_keys={id_: site.run_key.key for id_, site in cohort.items()},
        )  # fmt: skip
        return cls(cohort, replace(view, **changes))

    @property
    def run_keys(self) -> dict[str, SignedRunKey]:
        return {id_: site.run_key for id_, site in self.sites.items()}

    @property
    def graph(self) -> Any:
        return next(iter(self.sites.values())).member(self.view).graph

    def take_keys(self, *clients: str, judged: bool = True) -> None:
        for client in clients or tuple(self.sites):
            site = self.sites[client]
            body = site.keys(self.view, self.run_keys)
            raw = KeysBody.from_bytes(body.to_bytes(), len(self.graph.neighbours(client)))
            if judged:
                check_keys(raw, client, self.view.digest(), self.view.number, site.public)
            self.keys[client] = raw

    def roster(self, *clients: str) -> Roster:
        parties = (
            Party(id_, self.keys[id_].mask_key, self.keys[id_].signature)
            for id_ in sorted(clients or self.keys)
        )
        return Roster(self.view.digest(), tuple(parties))

    def survivors(self, roster: Roster, *clients: str) -> Survivors:
        listed = (
            Survivor(id_, self.updates[id_].digest, self.updates[id_].trailer.commitment)
            for id_ in sorted(clients or self.updates)
        )
        return Survivors(roster.context, roster.digest, tuple(listed))

    def key_dealings(self) -> dict[str, Dealing]:
        return {
            id_: Dealing(self.graph.neighbours(id_), body.dealt) for id_, body in self.keys.items()
        }

    def self_dealings(self, roster: Roster) -> dict[str, Dealing]:
        members = set(roster.clients)
        return {
            id_: Dealing(
                self.graph.neighbours(id_, members), made.trailer.dealt, made.trailer.commitment
            )
            for id_, made in self.updates.items()
        }

    def boxes_for(self, client: str, roster: Roster) -> dict[Kind, Inbox]:
        kinds: dict[Kind, dict[str, Dealing]] = {
            "key": self.key_dealings(),
            "self": self.self_dealings(roster),
        }
        context = self.view.digest()
        return {
            kind: inboxes(context, kind, dealings, [client])[client]
            for kind, dealings in kinds.items()
        }

    def confirmed(self, roster: Roster, survivors: Survivors, *clients: str) -> Confirmations:
        asked = clients or roster.clients
        found = {id_: self.sites[id_].confirm(self.view, roster, survivors) for id_ in asked}
        return Confirmations(survivors.digest, found)

    def unmasking(self, roster: Roster, survivors: Survivors) -> Unmasking:
        dealings = {**self.key_dealings(), **self.self_dealings(roster)}
        survived = set(survivors.clients)
        wanted = {
            id_: dealings[id_] if id_ in survived else self.key_dealings()[id_]
            for id_ in roster.clients
        }
        return Unmasking(self.graph, self.view.threshold, roster, survivors, wanted)

    def total(self, survivors: Survivors) -> Words:
        """The masked sum."""
        first, *rest = (self.updates[id_].words for id_ in survivors.clients)
        total = Words(*(part.copy() for part in first))
        for words in rest:
            for part, more in zip(total, words, strict=True):
                np.add(part, more, out=part)
        return total

    def unmask(self, secrets: Secrets, total: Words) -> Words:
        """Take the masks off a sum, in place."""
        masks.apply(secrets.removals(self.graph, self.view.digest()), *total)
        return total
