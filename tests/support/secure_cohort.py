"""A cohort with run keys, mask keys and signatures, as a site that checks its round sees it; any part can be changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fl_queue.protocol import crypto, signing
from fl_queue.secure import masks, shamir
from fl_queue.secure.context import (
    RoundView,
    confirm_statement,
    mask_key_statement,
    run_key_statement,
)
from fl_queue.secure.graph import shape
from fl_queue.secure.policy import Demands, RoundPolicy, Terms
from fl_queue.secure.records import (
    Confirmations,
    Party,
    Roster,
    SignedRunKey,
    Survivor,
    Survivors,
)

TERMS = Terms(confirm=True, max_corrupt=0.2, max_dropout=0.1)
BODY = "5" * 64


@dataclass(frozen=True)
class Cohort:
    """Clients ``c00``, ``c01``, ... with their keys; the first one is the site that checks."""

    signing_keys: dict[str, tuple[str, str]]
    run_keys: dict[str, SignedRunKey]
    view: RoundView

    @classmethod
    def of(cls, size: int, number: int = 7) -> Cohort:
        clients = [f"c{index:02}" for index in range(size)]
        signing_keys = {client: signing.new_key() for client in clients}
        run_keys = {}
        for client in clients:
            key = crypto.public_half(client.encode().ljust(32, b"."))
            statement = run_key_statement("demo-3f2a9c", client, key)
            secret = signing_keys[client][0]
            run_keys[client] = SignedRunKey(key, signing.raw_signature(secret, statement))
        degree, threshold = shape(size, 0.2, 0.1)
        view = RoundView(
            run="demo-3f2a9c", number=number, purpose="train", fetched="0" * 64, base_version=2, config="1" * 64,
            layout="2" * 64, bits=64, threshold=threshold, degree=degree, min_cohort=3,
            run_keys={client: key.key for client, key in run_keys.items()},
        )  # fmt: skip
        return cls(signing_keys, run_keys, view)

    @property
    def clients(self) -> tuple[str, ...]:
        return self.view.cohort

    @property
    def peers(self) -> dict[str, str]:
        return {client: public for client, (_, public) in self.signing_keys.items()}

    def policy(
        self, view: RoundView | None = None, terms: Terms = TERMS, **demands: Any
    ) -> RoundPolicy:
        wanted = Demands(client="c00", peers=self.peers)
        return RoundPolicy(replace(wanted, **demands), terms, view or self.view, self.peers)

    def mask_key(self, client: str) -> bytes:
        secret = shamir.to_bytes(int(client[1:]) + 1)
        return crypto.public_half(masks.mask_key(secret, self.view.digest()))

    def party(self, client: str, view: RoundView | None = None) -> Party:
        """A client's entry of the roster, signed under its own view of the round."""
        key = self.mask_key(client)
        statement = mask_key_statement((view or self.view).digest(), client, key)
        return Party(client, key, signing.raw_signature(self.signing_keys[client][0], statement))

    def roster(self, *clients: str) -> Roster:
        parties = tuple(self.party(client) for client in clients or self.clients)
        return Roster(self.view.digest(), parties)

    def survivors(self, roster: Roster, *clients: str) -> Survivors:
        listed = tuple(Survivor(id_, BODY, bytes(32)) for id_ in clients or roster.clients)
        return Survivors(roster.context, roster.digest, listed)

    def confirmations(self, survivors: Survivors, *clients: str) -> Confirmations:
        statement = confirm_statement(self.view.digest(), survivors.digest)
        return Confirmations(
            survivors.digest,
            {
                id_: signing.raw_signature(self.signing_keys[id_][0], statement)
                for id_ in clients or self.clients
            },
        )
