"""
What a site demands of a secure round, checked against what it fetched itself; nothing is taken as Redis has it.

Each failed demand is one sentence; none: the site goes on. In the order in which a round asks: the cohort before
anything is sent, the roster before the update is masked, the survivors before a share is revealed, and the others'
signatures over the survivors last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fl_queue.protocol import signing
from fl_queue.protocol.records import Purpose
from fl_queue.secure import graph
from fl_queue.secure.context import (
    RoundView,
    confirm_statement,
    mask_key_statement,
    run_key_statement,
)
from fl_queue.secure.graph import Graph, Shape
from fl_queue.secure.records import Confirmations, Roster, SignedRunKey, Survivors

#: With two, each would learn the other's update from the sum.
LEAST_COHORT = 3
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Demands:
    """
    The site's own rules: options of its worker.

    Args:
        client: Its id.
        peers: Client -> public signing key, base64: the only clients it shares a round with; None: any.
        min_cohort: Fewest clients in a cohort, a roster and a list of survivors.
    """

    client: str
    peers: Mapping[str, str] | None = None
    min_cohort: int = LEAST_COHORT


@dataclass(frozen=True, kw_only=True)
class Terms:
    """
    The round's terms, as the config that the site fetched has them: its section ``secure``.

    Args:
        confirm: Whether sites sign the survivors before they reveal.
        max_corrupt, max_dropout: Parts of the cohort that the graph withstands.
    """

    confirm: bool
    max_corrupt: float
    max_dropout: float


class RoundPolicy:
    """
    A site's demands in one round.

    Args:
        demands: The site's.
        terms: The round's.
        view: The round as the site sees it.
        signers: Client -> public signing key, base64, by which signatures are checked where the site has no
            peers of its own; None: the run has no signatures.
    """

    def __init__(
        self,
        demands: Demands,
        terms: Terms,
        view: RoundView,
        signers: Mapping[str, str] | None = None,
    ) -> None:
        self.demands, self.terms, self.view = demands, terms, view
        self._signers = signers if demands.peers is None else demands.peers
        self._context = view.digest()
        self.graph = Graph(view.cohort, view.degree, self._context)

    @property
    def least(self) -> int:
        """Fewest clients of which a sum may be known: the most that site, round and reason ask for."""
        return max(self.demands.min_cohort, self.view.min_cohort, LEAST_COHORT)

    # Before anything is sent

    def of_cohort(
        self, run_keys: Mapping[str, SignedRunKey], own_run_key: bytes, closed: int
    ) -> list[str]:
        """
        Failed demands of the cohort.

        Args:
            run_keys: Client -> run key and signature, as the round recorded them.
            own_run_key: The public one in this site's run file.
            closed: Newest round of the run that the site has closed; 0: none.
        """
        return list(self._of_cohort(run_keys, own_run_key, closed))

    def _of_cohort(
        self, run_keys: Mapping[str, SignedRunKey], own_run_key: bytes, closed: int
    ) -> Iterator[str]:
        view, cohort = self.view, self.view.cohort
        if view.number <= closed:
            yield f"round {view.number} is over at this site, which has closed round {closed}"
        yield from self._too_few("the cohort", len(cohort))
        if view.run_keys.get(self.demands.client) != own_run_key:
            yield f"round {view.number} has no run key of this site, or another one than its own"
        yield from self._strangers(cohort)
        for client in cohort:
            key = run_keys.get(client)
            if key is None or key.key != view.run_keys[client]:
                yield f"round {view.number} has no run key of {client}"
            elif not self._is_signed(
                client, run_key_statement(view.run, client, key.key), key.signature
            ):
                yield f"the run key of {client} is not signed with its key ({self._source})"
        yield from _twice("run key", view.run_keys)
        terms = self.terms
        shape = Shape(view.degree, view.threshold)
        if not graph.is_safe(len(cohort), shape, terms.max_corrupt, terms.max_dropout):
            yield (
                f"{view.degree} neighbours and a threshold of {view.threshold} are too few for a cohort "
                f"of {len(cohort)}"
            )
        if self.demands.peers is not None and not terms.confirm:
            yield "secure.confirm is off, and this site's peers (--peers) are to sign who survived"

    # Before the update is masked

    def of_roster(self, roster: Roster, own_mask_key: bytes | None, noted: str = "") -> list[str]:
        """
        Failed demands of the roster.

        Args:
            roster: As fetched.
            own_mask_key: The public one in this site's round file; None: it has none.
            noted: Digest of the roster that the site noted for this round; empty: none yet.
        """
        return list(self._of_roster(roster, own_mask_key, noted))

    def _of_roster(self, roster: Roster, own_mask_key: bytes | None, noted: str) -> Iterator[str]:
        view, number = self.view, self.view.number
        if noted and roster.digest != noted:
            yield f"round {number} has another roster than the one that this site has noted"
        if roster.context != self._context:
            yield another_view("the roster", number, roster.context, self._context)
        if outside := sorted(set(roster.clients) - set(view.cohort)):
            yield f"{_listed(outside)} in the roster, and not in the cohort"
        yield from self._too_few("the roster", len(roster.parties))
        needed = max(view.threshold, self.confirmations_needed)
        if len(roster.parties) < needed:
            yield f"the roster has {len(roster.parties)} clients, and {needed} are needed to unmask"
        keys = roster.mask_keys
        if own_mask_key is None or keys.get(self.demands.client) != own_mask_key:
            yield f"the roster has no mask key of this site, or another one than its own for round {number}"
        yield from self._strangers(roster.clients)
        for party in roster.parties:
            statement = mask_key_statement(self._context, party.client, party.key)
            if not self._is_signed(party.client, statement, party.signature):
                yield (
                    f"{party.client} has not signed its mask key for this site's view of round {number} "
                    f"(context {self._context.hex()[:_SHOWN]}): its base model, config or cohort differs"
                )
        yield from _twice("mask key", keys)

    # Before a share is revealed

    def of_survivors(
        self, survivors: Survivors, roster: Roster, own_body: str, revealed: str = ""
    ) -> list[str]:
        """
        Failed demands of a list of survivors, whose roster is the one that this site has noted.

        Args:
            survivors: As fetched.
            roster: The noted one; see ``of_roster``.
            own_body: Digest of the masked update that this site has sent; empty: it has sent none.
            revealed: Digest of the list for which the site has signed or revealed; empty: none yet.
        """
        return list(self._of_survivors(survivors, roster, own_body, revealed))

    def _of_survivors(
        self, survivors: Survivors, roster: Roster, own_body: str, revealed: str
    ) -> Iterator[str]:
        number, own = self.view.number, survivors.of(self.demands.client)
        if revealed and survivors.digest != revealed:
            yield f"this site has answered for another list of survivors of round {number}"
        if survivors.context != self._context:
            yield another_view("the list of survivors", number, survivors.context, self._context)
        if survivors.roster != roster.digest:
            yield f"the list of survivors of round {number} is of another roster than this site's"
        listed, known = survivors.clients, set(roster.clients)
        if outside := sorted(set(listed) - known):
            yield f"{_listed(outside)} in the list of survivors, and not in the roster"
        if own is not None and own.body != own_body:
            yield "the list of survivors has an update of this site that is not the one that it sent"
        yield from self._too_few("the list of survivors", len(listed))
        if not self.graph.is_connected(known.intersection(listed)):
            yield "the survivors are not one part of the graph, so that the sums of its parts would show"

    def of_confirmations(
        self, confirmations: Confirmations, survivors: Survivors, roster: Roster
    ) -> list[str]:
        """Failed demands of the others' signatures; none is asked for where the round goes without."""
        if not self.terms.confirm:
            return []
        digest, members = survivors.digest, set(roster.clients)
        if confirmations.survivors != digest:
            return ["the signatures are over another list of survivors than this site has signed"]
        statement = confirm_statement(self._context, digest)
        good = [
            client
            for client, signature in confirmations.signatures.items()
            if client in members and self._is_signed(client, statement, signature)
        ]
        needed = self.confirmations_needed
        if len(good) >= needed:
            return []
        return [
            f"{len(good)} signatures over the list of survivors are good, and {needed} are needed"
        ]

    @property
    def confirmations_needed(self) -> int:
        """Signatures that are needed before anything is revealed; 0: the round goes without."""
        return graph.confirmations_needed(len(self.view.cohort)) if self.terms.confirm else 0

    # Parts of them

    def _too_few(self, what: str, count: int) -> Iterator[str]:
        if count < self.least:
            yield f"{what} has {count} clients; this site takes part with {self.least} or more"

    def _strangers(self, clients: tuple[str, ...]) -> Iterator[str]:
        if self.demands.peers is not None and (others := set(clients) - self.demands.peers.keys()):
            yield f"{_listed(sorted(others))} not among this site's peers (--peers)"

    def _is_signed(self, client: str, statement: bytes, signature: bytes) -> bool:
        if self._signers is None:
            return True
        return signing.is_raw_signature(self._signers.get(client, ""), statement, signature)

    @property
    def _source(self) -> str:
        return "--peers" if self.demands.peers is not None else "of the run's parties"


def against_plain_round(number: int, purpose: Purpose) -> str:
    """The sentence of a site that takes part in secure rounds only; empty where nothing of its data would leave."""
    if purpose == Purpose.initialise:
        return ""
    return (
        f"round {number} asks for {_ASKED[purpose]} in clear, and this site takes part in secure rounds only "
        "(--require-secure)"
    )


_ASKED = {
    Purpose.train: "an update",
    Purpose.evaluate: "metrics",
    Purpose.sums: "sums of this site's rows",
}


def another_view(what: str, number: int, other: bytes, own: bytes) -> str:
    """The sentence about a part of a round that was made under another context than one's own."""
    contexts = f"context {other.hex()[:_SHOWN]}, here {own.hex()[:_SHOWN]}"
    return f"{what} is of another view of round {number} ({contexts}): its base model, config or cohort differs"


def _twice(what: str, keys: Mapping[str, bytes]) -> Iterator[str]:
    """Clients that share a key."""
    owners: dict[bytes, str] = {}
    for client in sorted(keys):
        first = owners.setdefault(keys[client], client)
        if first != client:
            yield f"{first} and {client} have the same {what}"


def _listed(clients: list[str]) -> str:
    """Names, the first few of them, with the verb."""
    more = f" and {len(clients) - 3} more" if len(clients) > 3 else ""
    return f"{', '.join(clients[:3])}{more} {'is' if len(clients) == 1 else 'are'}"
